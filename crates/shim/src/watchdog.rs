//! The thread that kills.
//!
//! It owns nothing but a timer on CLOCK_BOOTTIME (timerfd_create(2)) and the handle on the sandbox, whose end it sees, and
//! obeys a [`Verdict`]. It is a thread of its own so that a deadline is kept also while the rest of the shim waits for a disk,
//! works through hostile input, or hangs.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use holm_domain::BootMicros;
use holm_runtime::SandboxHandle;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime},
};
use tokio::sync::watch;

use crate::{
    clock,
    deadline::{Action, Causes, Input, Verdict},
};

const POLL_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What the rest of the shim sees of the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// When the lease runs out.
    pub deadline: BootMicros,
    /// Why the sandbox is being ended.
    pub causes: Causes,
    /// Whether the workload is to be asked to end.
    pub terminate: bool,
    /// Whether everything is to be dead.
    pub killed: bool,
    /// Whether everything is dead.
    pub ended: bool,
}

/// What is to be done when the verdict is to kill and there is no sandbox yet that could be killed.
pub type Unarmed = Box<dyn FnOnce(Causes) + Send>;

struct State {
    verdict: Verdict,
    handle: Option<Arc<dyn SandboxHandle>>,
    unarmed: Option<Unarmed>,
    closing: bool,
}

struct Shared {
    state: Mutex<State>,
    timer: OwnedFd,
    /// Makes the thread look again at what it waits for (eventfd(2)). The timer cannot: setting it anew takes back that it
    /// went off.
    wake: OwnedFd,
    view: watch::Sender<View>,
}

/// The thread that kills; it ends with the last [`Watchdog`].
pub struct Watchdog {
    shared: Arc<Shared>,
}

impl Watchdog {
    /// Starts the thread. Until [`Watchdog::arm`] a kill is `unarmed`'s to do.
    pub fn start(verdict: Verdict, unarmed: Unarmed) -> std::io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (view, _) = watch::channel(view(&verdict, false));
        let state = State { verdict, handle: None, unarmed: Some(unarmed), closing: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), timer, wake, view });
        shared.set_timer(shared.lock().verdict.next_tick());
        let (thread, of_attempt) = (shared.clone(), tracing::Span::current());
        std::thread::Builder::new().name("watchdog".to_owned()).stack_size(256 * 1024).spawn(move || {
            let _of_attempt = of_attempt.entered();
            // prctl(PR_SET_NO_NEW_PRIVS) counts for one thread; this one needs nothing.
            if let Err(error) = rustix::thread::set_no_new_privs(true) {
                tracing::error!(%error, "the watchdog keeps the privileges of set-user-id programs");
            }
            thread.watch();
        })?;
        Ok(Self { shared })
    }

    /// Hands over the sandbox. One that is to be dead already is killed at once.
    pub fn arm(&self, handle: Arc<dyn SandboxHandle>) {
        let mut state = self.shared.lock();
        let is_killed = state.verdict.is_killed();
        state.handle = Some(handle);
        // So that the thread waits for the end of the sandbox, too.
        self.shared.wake();
        if is_killed {
            self.shared.kill(state);
        }
    }

    /// Tells what happened; a kill that follows is done when this returns.
    pub fn input(&self, input: Input) {
        self.shared.step(input);
    }

    /// What the verdict is, as it changes.
    pub fn view(&self) -> watch::Receiver<View> {
        self.shared.view.subscribe()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // Also in a panic: nothing that was not seen to its end may live on.
        if self.shared.lock().handle.is_some() {
            self.shared.step(Input::GiveUp);
        }
        self.shared.lock().closing = true;
        self.shared.wake();
    }
}

fn view(verdict: &Verdict, terminate: bool) -> View {
    View {
        deadline: verdict.deadline(),
        causes: verdict.causes(),
        terminate,
        killed: verdict.is_killed(),
        ended: verdict.has_ended(),
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere must not stop the one who kills.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) {
        loop {
            let handle = {
                let state = self.lock();
                if state.closing {
                    return;
                }
                state.handle.clone().filter(|_| !state.verdict.has_ended())
            };
            let mut waited = vec![PollFd::new(&self.timer, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
            waited.extend(handle.as_ref().map(|handle| PollFd::from_borrowed_fd(handle.ended(), PollFlags::IN)));
            match poll(&mut waited, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "the watchdog cannot wait");
                    std::thread::sleep(POLL_AGAIN_AFTER);
                }
            }
            let is_readable = |at: usize| waited.get(at).is_some_and(|fd| fd.revents().contains(PollFlags::IN));
            for (at, fd) in [&self.timer, &self.wake].into_iter().enumerate() {
                if is_readable(at) {
                    // The count does not matter: what is due is decided by the clock.
                    let _ = rustix::io::read(fd, &mut [0; 8]);
                }
            }
            self.step(if is_readable(2) { Input::Ended } else { Input::Tick });
        }
    }

    fn wake(&self) {
        // Fails only where it would change nothing: the thread has not yet read an earlier one.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn step(&self, input: Input) {
        let mut state = self.lock();
        let action = state.verdict.step(input, clock::boot());
        self.set_timer(state.verdict.next_tick());
        let terminate = action == Some(Action::Terminate);
        let now = view(&state.verdict, terminate);
        // Sent before the kill: whoever sees the sandbox die finds the cause.
        self.view.send_if_modified(|view| {
            let now = View { terminate: view.terminate || terminate, ..now };
            std::mem::replace(view, now) != now
        });
        if action == Some(Action::Kill) {
            self.kill(state);
        }
    }

    fn kill(&self, mut state: MutexGuard<'_, State>) {
        if let Some(handle) = &state.handle {
            // The verdict repeats it until everything has died.
            if let Err(error) = handle.kill() {
                tracing::error!(%error, "the sandbox could not be killed");
            }
            return;
        }
        let (causes, unarmed) = (state.verdict.causes(), state.unarmed.take());
        drop(state);
        if let Some(unarmed) = unarmed {
            unarmed(causes);
        }
    }

    fn set_timer(&self, at: Option<BootMicros>) {
        // A time of zero disarms the timer.
        let micros = at.map_or(0, |at| at.0.max(1));
        let value = Timespec {
            tv_sec: i64::try_from(micros / 1_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(micros % 1_000_000 * 1_000).unwrap_or(0),
        };
        let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec) {
            tracing::error!(%error, "the deadline timer cannot be set");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::fd::{AsFd as _, BorrowedFd},
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;
    use crate::deadline::Terms;

    /// A sandbox that dies when its other end is closed, and not by being killed.
    struct Counted {
        kills: AtomicUsize,
        fd: OwnedFd,
    }

    impl SandboxHandle for Counted {
        fn kill(&self) -> Result<(), holm_runtime::Error> {
            self.kills.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }

        fn ended(&self) -> BorrowedFd<'_> {
            self.fd.as_fd()
        }
    }

    fn counted() -> (Arc<Counted>, OwnedFd) {
        let (fd, life) = rustix::pipe::pipe().unwrap();
        (Arc::new(Counted { kills: AtomicUsize::new(0), fd }), life)
    }

    fn verdict(after: Duration) -> Verdict {
        let terms = Terms {
            fence: 1,
            deadline: clock::boot().plus(after),
            time_limit: Duration::from_secs(1_000),
            terminate_grace: Duration::from_secs(1_000),
        };
        Verdict::new(terms)
    }

    fn wait_until(what: &str, condition: impl Fn() -> bool) {
        let start = std::time::Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(20), "waited for {what}");
            std::thread::yield_now();
        }
    }

    fn refuse() -> Unarmed {
        Box::new(|_| panic!("there is a sandbox"))
    }

    #[test]
    fn kills_at_the_deadline_and_again_until_it_has_ended() {
        let dog = Watchdog::start(verdict(Duration::from_millis(50)), refuse()).unwrap();
        let ((handle, life), deadline) = (counted(), dog.view().borrow().deadline);
        dog.arm(handle.clone());
        wait_until("two kills", || {
            let kills = handle.kills.load(Ordering::SeqCst);
            assert!(kills == 0 || clock::boot() >= deadline, "killed before the deadline");
            kills >= 2
        });
        assert!(dog.view().borrow().killed && dog.view().borrow().causes.lease);
        assert!(!dog.view().borrow().ended);
        rustix::io::write(&life, b"x").unwrap();
        wait_until("the end", || dog.view().borrow().ended);
        assert_eq!(dog.shared.lock().verdict.next_tick(), None);
    }

    #[test]
    fn an_extension_is_kept_and_a_stop_is_done_at_once() {
        let dog = Watchdog::start(verdict(Duration::from_secs(1_000)), refuse()).unwrap();
        let (handle, _life) = counted();
        dog.arm(handle.clone());
        let later = clock::boot().plus(Duration::from_secs(2_000));
        dog.input(Input::Extend { fence: 1, deadline: later });
        assert_eq!(dog.view().borrow().deadline, later);
        assert_eq!(handle.kills.load(Ordering::SeqCst), 0);
        dog.input(Input::Stop);
        assert_eq!(handle.kills.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_end_is_seen_whatever_came_right_after_the_sandbox() {
        for _ in 0..300 {
            let dog = Watchdog::start(verdict(Duration::from_secs(1_000)), refuse()).unwrap();
            let (handle, life) = counted();
            dog.arm(handle);
            // Sets the timer anew before the thread may have had its turn.
            dog.input(Input::Started);
            rustix::io::write(&life, b"x").unwrap();
            wait_until("the end", || dog.view().borrow().ended);
        }
    }

    #[test]
    fn without_a_sandbox_the_launch_itself_is_given_up() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let unarmed = Box::new(move |causes: Causes| sender.send(causes).unwrap());
        let dog = Watchdog::start(verdict(Duration::from_millis(20)), unarmed).unwrap();
        assert!(receiver.recv_timeout(Duration::from_secs(20)).unwrap().lease);
        let (handle, _life) = counted();
        dog.arm(handle.clone());
        assert!(handle.kills.load(Ordering::SeqCst) >= 1, "a sandbox that comes too late is killed");
    }
}
