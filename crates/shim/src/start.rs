//! The beginning and the end of the process: what it is handed, what it gives up, and what it leaves behind whatever happens.
//!
//! The order matters. The agent's user id goes first, before anything is read. The control socket and the watchdog stand
//! before the sandbox is made, so that nothing is ever without a deadline. The sandbox is made by the main thread, which
//! lives as long as the process: the kernel ties what is in the sandbox to the thread that made it (PR_SET_PDEATHSIG,
//! prctl(2)). Privileges are given up after that, because what the shim gives up before would be missing inside, and before
//! the first byte of the guest's is read.

use std::{
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use holm_runtime::{AttemptId, Descriptor, Sandbox, SharedRuntime, crash::effect, inherited, passing};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvFlags, recv},
};
use tokio::{
    net::UnixListener,
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    confine::{self, Network},
    control,
    deadline::{Causes, Terms, Verdict},
    exit,
    guest::Readiness,
    protocol::{DIR_DESCRIPTOR, Launch},
    supervise::{Attempt, has_passed, stillborn},
    watchdog::Watchdog,
};

/// How many commands of the agent's may wait to be obeyed.
const COMMANDS_WAITING_MAX: usize = 16;
/// How long the orders may take: the preparation goes on meanwhile, images are unpacked in it.
const ORDERS_WITHIN: Duration = Duration::from_secs(30 * 60);

/// Why a shim could not even begin.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
    #[error("receiving the launch message: {0}")]
    Message(#[from] passing::Error),
}

fn system<E: Into<io::Error>>(context: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::System(context, error.into())
}

/// The whole life of a shim. `resolve` knows the runtimes by name.
pub fn shim_main(resolve: impl FnOnce(&str) -> Option<SharedRuntime>) -> ExitCode {
    match receive() {
        Ok(Some(received)) => attend(received, resolve),
        // The agent has no orders after all, or is gone.
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the shim cannot begin");
            ExitCode::FAILURE
        }
    }
}

/// What a shim was handed, and what it made of its own while it waited.
struct Received {
    launch: Launch,
    descriptors: Vec<Descriptor>,
    agent_uid: u32,
    event_loop: EventLoop,
}

/// What moves everything, and the one signal that is heeded.
struct EventLoop {
    runtime: Runtime,
    terminate: Signal,
}

impl EventLoop {
    fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        // From the first registration on, these signals do nothing by themselves.
        for ignored in [SignalKind::hangup(), SignalKind::interrupt()] {
            drop(signal(ignored)?);
        }
        let terminate = signal(SignalKind::terminate())?;
        drop(inside);
        Ok(Self { runtime, terminate })
    }
}

/// Takes the orders; nothing if the agent closes the socket without any.
fn receive() -> Result<Option<Received>, Error> {
    confine::take_own_ids(&std::env::args().collect::<Vec<_>>()).map_err(system("taking a user id of its own"))?;
    inherited::close_all().map_err(system("closing inherited descriptors"))?;
    let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(system("standard input"))?;
    // Who made the socket pair is who started the shim; a user id of its own was given to the shim since.
    let agent = rustix::net::sockopt::socket_peercred(&stdin).map_err(system("credentials of the agent"))?;
    let event_loop = EventLoop::start().map_err(system("starting the event loop"))?;
    if !are_coming(&stdin).map_err(system("waiting for orders"))? {
        return Ok(None);
    }
    let (mut launch, mut descriptors): (Launch, Vec<Descriptor>) = passing::receive(&UnixStream::from(stdin))?;
    enter(&mut launch, &mut descriptors).map_err(system("entering the attempt's folder"))?;
    let null: OwnedFd = std::fs::File::open("/dev/null").map_err(system("/dev/null"))?.into();
    rustix::stdio::dup2_stdin(&null).map_err(system("standard input"))?;
    // Signals to the agent's session and process group are not meant for the shim.
    rustix::process::setsid().map_err(system("leaving the agent's session"))?;
    Ok(Some(Received { launch, descriptors, agent_uid: agent.uid.as_raw(), event_loop }))
}

/// Waits for the first of the orders, as long as the preparation may take; whether they come.
fn are_coming(orders: &OwnedFd) -> io::Result<bool> {
    let patience = Timespec { tv_sec: ORDERS_WITHIN.as_secs() as i64, tv_nsec: 0 };
    let mut waited = [PollFd::new(orders, PollFlags::IN)];
    if rustix::io::retry_on_intr(|| poll(&mut waited, Some(&patience)))? == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("there were none within {ORDERS_WITHIN:?}")));
    }
    let (count, _) = recv(orders, &mut [0][..], RecvFlags::PEEK)?;
    Ok(count > 0)
}

/// Makes the attempt's folder the current one, by its descriptor: its path leads through folders that are closed to the shim.
fn enter(launch: &mut Launch, descriptors: &mut Vec<Descriptor>) -> io::Result<()> {
    let index = descriptors.iter().position(|descriptor| descriptor.name == DIR_DESCRIPTOR);
    let missing = || io::Error::other("the agent did not hand it over");
    let dir = descriptors.swap_remove(index.ok_or_else(missing)?);
    rustix::process::fchdir(&dir.fd)?;
    launch.dir = PathBuf::from(".");
    Ok(())
}

/// Sees an attempt through, and leaves a final status whatever happens.
fn attend(received: Received, resolve: impl FnOnce(&str) -> Option<SharedRuntime>) -> ExitCode {
    let launch = received.launch.clone();
    let AttemptId { run, fence } = launch.attempt;
    // What this process logs from here on is about one attempt.
    let (host, trace_id) = (launch.host.as_deref(), launch.trace.map(tracing::field::display));
    let _of_attempt = tracing::error_span!("attempt", %run, fence, host, trace_id).entered();
    let problem = match catch_unwind(AssertUnwindSafe(|| serve(received, resolve))) {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the shim panicked".to_owned(),
    };
    // Everything that held the sandbox is gone by now, and with it the sandbox.
    tracing::error!(problem, "the shim gives up");
    leave_behind(&launch, Causes::default(), problem);
    ExitCode::FAILURE
}

/// Writes a final status of failure, unless there is one already.
fn leave_behind(launch: &Launch, causes: Causes, problem: String) {
    if let Ok(Some(_)) = crate::client::read_exit(&launch.dir) {
        return;
    }
    if let Err(error) = exit::write_status(&launch.dir, &stillborn(launch, causes, problem)) {
        tracing::error!(%error, "the final status cannot be written");
    }
}

fn serve(received: Received, resolve: impl FnOnce(&str) -> Option<SharedRuntime>) -> Result<(), Error> {
    let Received { launch, descriptors, agent_uid, event_loop: EventLoop { runtime, terminate } } = received;
    let _inside = runtime.enter();
    let listener = effect("control.bind", || control::bind(&launch.dir));
    let listener = listener.map_err(system("making the control socket"))?;
    let listener = UnixListener::from_std(listener).map_err(system("making the control socket"))?;
    let watchdog = watchdog(&launch).map_err(system("starting the watchdog"))?;
    let attempt = effect("spool.create", || Attempt::new(launch, watchdog));
    let attempt = attempt.map_err(system("making the attempt's files"))?;
    let readiness = Readiness::begin(Duration::from_millis(attempt.launch.tuning.ready_ms));
    let launched = effect("sandbox.launch", || launch_sandbox(&attempt.launch, descriptors, resolve));
    let leads_anywhere = launched.as_ref().is_ok_and(|sandbox| sandbox.egress.is_some());
    let network = if leads_anywhere { Network::Egress } else { Network::None };
    confine::confine(network).map_err(system("giving up privileges"))?;
    runtime.block_on(see_through(&attempt, launched, readiness, listener, agent_uid, terminate));
    Ok(())
}

/// Before there is a sandbox, a kill is the end of the shim: a launch that hangs cannot be ended otherwise. What it made so
/// far is tied to the shim's life, or the reaper's to remove.
fn watchdog(launch: &Launch) -> io::Result<Watchdog> {
    let verdict = Verdict::new(Terms {
        fence: launch.attempt.fence,
        deadline: launch.deadline_us,
        time_limit: launch.spec.limits.timeout(),
        terminate_grace: Duration::from_millis(launch.tuning.terminate_grace_ms),
    });
    let launch = launch.clone();
    Watchdog::start(
        verdict,
        Box::new(move |causes| {
            leave_behind(&launch, causes, "the sandbox was not made before its deadline".to_owned());
            let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            tracing::error!(?killed, "the shim outlived its own kill");
        }),
    )
}

fn launch_sandbox(
    launch: &Launch,
    descriptors: Vec<Descriptor>,
    resolve: impl FnOnce(&str) -> Option<SharedRuntime>,
) -> Result<Sandbox, holm_runtime::Error> {
    if has_passed(launch.deadline_us) {
        return Err(holm_runtime::Error::Malformed("its deadline has passed".to_owned()));
    }
    let unknown = || holm_runtime::Error::Malformed(format!("no runtime is named `{}`", launch.runtime));
    resolve(&launch.runtime).ok_or_else(unknown)?.launch(launch.launch.clone(), descriptors)
}

async fn see_through(
    attempt: &Attempt,
    launched: Result<Sandbox, holm_runtime::Error>,
    readiness: Readiness,
    listener: UnixListener,
    agent_uid: u32,
    mut terminate: Signal,
) {
    let (sender, commands) = mpsc::channel(COMMANDS_WAITING_MAX);
    let control = control::serve(listener, agent_uid, attempt.statuses(), sender);
    let _control = AbortOnDropHandle::new(tokio::spawn(control));
    let terminated = async {
        terminate.recv().await;
        attempt.leave();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = attempt.see_through(launched, readiness, commands) => {}
        () = terminated => {}
    }
}
