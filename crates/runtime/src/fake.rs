//! A runtime without processes, for tests of what uses runtimes.
//!
//! Its sandbox is a pair of sockets; the far ends are given to a function of the test, which plays the guest. It fails on
//! cue at any step, remembers what was called, and its inventory holds what was prepared and what a test put there.

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holm_domain::host::RuntimeInfo;
use holm_wire::guest_api::{IdRange, Setup};
use rustix::event::{EventfdFlags, eventfd};

use crate::{
    AttemptId, Context, Descriptor, Error, Prepared, Request, Resources, Runtime, Sandbox, SandboxHandle, ShimIdentity,
    StepReport, Stop,
};

/// A step at which the fake can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// [`Runtime::plan`].
    Plan,
    /// [`Runtime::prepare`], after everything was made.
    Prepare,
    /// [`Runtime::launch`].
    Launch,
    /// [`Runtime::destroy`]: the report bears the error, and what was made stays.
    Destroy,
    /// [`Runtime::inventory`].
    Inventory,
}

/// The guest's ends of the lanes.
#[derive(Debug)]
pub struct Lanes {
    /// The lane on which the guest is the server.
    pub lane_in: UnixStream,
    /// The lane on which the guest is the client.
    pub lane_out: UnixStream,
}

/// Plays the guest; called on the thread of `launch`, so it starts what takes long elsewhere.
pub type Guest = dyn Fn(AttemptId, Lanes) + Send + Sync;

#[derive(Default)]
struct State {
    failures: BTreeMap<Step, VecDeque<String>>,
    calls: Vec<(Step, Option<AttemptId>)>,
    existing: BTreeMap<AttemptId, Resources>,
    live: BTreeMap<AttemptId, Arc<OwnedFd>>,
}

/// The scripted runtime.
pub struct FakeRuntime {
    guest: Box<Guest>,
    state: Arc<Mutex<State>>,
}

impl FakeRuntime {
    /// A runtime whose sandboxes are played by `guest`.
    pub fn new(guest: impl Fn(AttemptId, Lanes) + Send + Sync + 'static) -> Self {
        Self { guest: Box::new(guest), state: Arc::default() }
    }

    /// The next call of a step fails with this message. Repeated: the calls after it as well, in order.
    pub fn fail_next(&self, step: Step, message: &str) {
        self.state().failures.entry(step).or_default().push_back(message.to_owned());
    }

    /// Puts something into the inventory, as if an agent had left it behind.
    pub fn leave_behind(&self, resources: Resources) {
        self.state().existing.insert(resources.attempt, resources);
    }

    /// What was called so far, in order.
    pub fn calls(&self) -> Vec<(Step, Option<AttemptId>)> {
        self.state().calls.clone()
    }

    /// Ends a sandbox as if its guest had died.
    pub fn end(&self, attempt: AttemptId) -> Result<(), Error> {
        end(&mut self.state(), attempt)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, step: Step, attempt: Option<AttemptId>) -> Result<(), Error> {
        let mut state = self.state();
        state.calls.push((step, attempt));
        match state.failures.get_mut(&step).and_then(VecDeque::pop_front) {
            None => Ok(()),
            Some(message) => Err(Error::Launch(message)),
        }
    }
}

fn end(state: &mut State, attempt: AttemptId) -> Result<(), Error> {
    if let Some(ended) = state.live.remove(&attempt) {
        rustix::io::write(&*ended, &1u64.to_ne_bytes()).context(|| "ending a fake sandbox".to_owned())?;
    }
    Ok(())
}

struct Handle {
    attempt: AttemptId,
    ended: Arc<OwnedFd>,
    state: Arc<Mutex<State>>,
}

impl SandboxHandle for Handle {
    fn kill(&self) -> Result<(), Error> {
        end(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner), self.attempt)
    }

    fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // An event descriptor that is full was written to before: it is readable either way.
        let _ = self.kill();
    }
}

impl Runtime for FakeRuntime {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn fingerprint(&self) -> RuntimeInfo {
        let capabilities = ["root.host", "root.dir", "root.tar", "work_dir", "mounts", "limits.disk"];
        let capabilities = capabilities.map(str::to_owned).into();
        RuntimeInfo { name: self.name().to_owned(), capabilities, unenforced: Vec::new() }
    }

    fn plan(&self, request: &Request, taken: &[u32]) -> Result<Resources, Error> {
        self.begin(Step::Plan, Some(request.attempt))?;
        let uid_slot = (0..u32::MAX).find(|slot| !taken.contains(slot));
        let paths = vec![PathBuf::from(format!("/nonexistent/{}.{}", request.attempt.run, request.attempt.fence))];
        let runtime = self.name().to_owned();
        Ok(Resources { runtime, attempt: request.attempt, uid_slot, cgroups: Vec::new(), mounts: Vec::new(), paths })
    }

    fn shim(&self, resources: &Resources) -> ShimIdentity {
        let AttemptId { run, fence } = resources.attempt;
        ShimIdentity { label: format!("fake.{run}.{fence}"), ids: None }
    }

    fn prepare(&self, request: &Request, resources: &Resources, _: &Stop) -> Result<Prepared, Error> {
        self.state().existing.insert(request.attempt, resources.clone());
        self.begin(Step::Prepare, Some(request.attempt))?;
        let launch = serde_json::to_value(request.attempt).map_err(|error| Error::Malformed(error.to_string()))?;
        Ok(Prepared { launch, descriptors: Vec::new(), image_digest: None, unenforced: Vec::new() })
    }

    fn launch(&self, launch: serde_json::Value, _: Vec<Descriptor>) -> Result<Sandbox, Error> {
        let attempt = serde_json::from_value(launch).map_err(|error| Error::Malformed(error.to_string()))?;
        self.begin(Step::Launch, Some(attempt))?;
        let pair = || UnixStream::pair().context(|| "making a lane".to_owned());
        let ((lane_in, guest_in), (lane_out, guest_out)) = (pair()?, pair()?);
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let ended = Arc::new(eventfd(0, flags).context(|| "making an event".to_owned())?);
        self.state().live.insert(attempt, ended.clone());
        (self.guest)(attempt, Lanes { lane_in: guest_in, lane_out: guest_out });
        let ids = IdRange { outer_first: 1, count: 65_536 };
        let hostname = "fake".to_owned();
        Ok(Sandbox {
            lane_in: lane_in.into(),
            lane_out: lane_out.into(),
            setup: Setup {
                hostname,
                ids,
                allow_sudo: false,
                hidden: None,
                work_dir: None,
                read_only: Vec::new(),
                writes_to_host: false,
                redirect: None,
                trusted: None,
            },
            env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
            egress: None,
            handle: Box::new(Handle { attempt, ended, state: self.state.clone() }),
        })
    }

    fn destroy(&self, resources: &Resources) -> Vec<StepReport> {
        let begun = self.begin(Step::Destroy, Some(resources.attempt));
        let result = begun.and_then(|()| {
            let mut state = self.state();
            state.existing.remove(&resources.attempt);
            end(&mut state, resources.attempt)
        });
        vec![StepReport { step: "sandbox".to_owned(), error: result.err().map(|error| error.to_string()) }]
    }

    fn inventory(&self) -> Result<Vec<Resources>, Error> {
        self.begin(Step::Inventory, None)?;
        Ok(self.state().existing.values().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        conformance::{self, Subject},
        registry::{self, Registry, Requirement},
    };
    use holm_domain::{RunId, run::RunSpec};
    use std::{
        io::{Read, Write},
        sync::atomic::{AtomicU64, Ordering},
    };

    fn attempt() -> AttemptId {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let run: RunId = "run_01j9zzzzzzzzzzzzzzzzzzzzzz".parse().unwrap();
        AttemptId { run, fence: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    fn echo(_: AttemptId, lanes: Lanes) {
        std::thread::spawn(move || {
            let mut byte = [0];
            while matches!((&lanes.lane_in).read(&mut byte), Ok(1)) {
                (&lanes.lane_in).write_all(&byte).unwrap();
            }
        });
    }

    #[test]
    fn conforms() {
        let hello = |sandbox: &Sandbox| {
            let mut lane = UnixStream::from(sandbox.lane_in.try_clone().unwrap());
            lane.write_all(b"x").unwrap();
            lane.read_exact(&mut [0]).unwrap();
        };
        let dir = tempfile::tempdir().unwrap();
        let runtime = FakeRuntime::new(echo);
        conformance::all(&Subject { runtime: &runtime, dir: dir.path(), attempt: &attempt, hello: &hello });
    }

    #[test]
    fn fails_on_cue_and_only_once() {
        let runtime = FakeRuntime::new(echo);
        let request = Request { attempt: attempt(), spec: RunSpec::new(["true"]), dir: "/".into() };
        runtime.fail_next(Step::Prepare, "no luck");
        let resources = runtime.plan(&request, &[0]).unwrap();
        assert_eq!(resources.uid_slot, Some(1));
        assert!(runtime.prepare(&request, &resources, &Stop::default()).unwrap_err().to_string().contains("no luck"));
        assert_eq!(runtime.inventory().unwrap().len(), 1, "a failed preparation leaves something behind");
        runtime.fail_next(Step::Destroy, "busy");
        assert!(runtime.destroy(&resources)[0].error.as_ref().unwrap().contains("busy"));
        assert_eq!(runtime.destroy(&resources)[0].error, None);
        assert_eq!(runtime.inventory().unwrap(), []);
        runtime.leave_behind(resources.clone());
        assert_eq!(runtime.inventory().unwrap(), [resources]);
    }

    #[test]
    fn the_registry_resolves_by_name_and_by_what_is_asked_for() {
        let mut registry = Registry::new();
        let wanted = Requirement { name: None, capabilities: vec!["root.dir".into()] };
        let none = registry.resolve(&wanted).err().unwrap().to_string();
        assert!(none.contains("can root.dir") && none.contains("there is none"), "{none}");
        registry.add(Arc::new(FakeRuntime::new(echo))).unwrap();
        let again = registry.add(Arc::new(FakeRuntime::new(echo)));
        assert_eq!(again, Err(registry::Error::Duplicate("fake".into())));
        assert_eq!(registry.resolve(&wanted).unwrap().name(), "fake");
        assert_eq!(registry.by_name("fake").unwrap().name(), "fake");
        let snapshot = Requirement { name: Some("vm".into()), capabilities: vec!["snapshot".into()] };
        let error = registry.resolve(&snapshot).err().unwrap().to_string();
        assert!(error.contains("named `vm`") && error.contains("can snapshot"), "{error}");
        assert!(error.contains("`fake` (root.host"), "{error}");
    }
}
