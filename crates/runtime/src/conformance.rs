//! What every runtime must do, as one suite.
//!
//! A test gives it a runtime and a way to see that a sandbox is alive; the suite panics where a promise of the trait is
//! broken. It takes both parts, the agent's and the shim's. What it leaves out: what only one runtime promises.

use std::{path::Path, time::Duration};

use holm_domain::run::RunSpec;
use rustix::{
    event::{PollFd, PollFlags, poll},
    time::Timespec,
};

use crate::{AttemptId, Request, Resources, Runtime, Sandbox, Stop};

/// How long anything may take here before it counts as broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// A runtime under test.
pub struct Subject<'a> {
    /// The runtime.
    pub runtime: &'a dyn Runtime,
    /// A folder that exists.
    pub dir: &'a Path,
    /// Draws an attempt that nobody has.
    pub attempt: &'a dyn Fn() -> AttemptId,
    /// Panics unless the guest of a sandbox answers.
    pub hello: &'a dyn Fn(&Sandbox),
}

/// Every promise, one after the other.
pub fn all(subject: &Subject<'_>) {
    names_are_consistent(subject);
    a_life_leaves_nothing(subject);
    plans_create_nothing(subject);
    a_partial_preparation_can_be_destroyed(subject);
    sandboxes_share_no_ids(subject);
    dropping_kills(subject);
}

/// The runtime's name is the one in its fingerprint, and the fingerprint does not change.
pub fn names_are_consistent(subject: &Subject<'_>) {
    let info = subject.runtime.fingerprint();
    assert_eq!(info.name, subject.runtime.name());
    assert_eq!(info, subject.runtime.fingerprint());
    assert!(!info.capabilities.is_empty(), "it can do nothing: {:?}", info.unenforced);
}

/// Plan, prepare, launch, hello, kill, destroy; then nothing is left, and destroying again does no harm.
pub fn a_life_leaves_nothing(subject: &Subject<'_>) {
    let before = subject.labelled();
    let (resources, sandbox) = subject.start(&[]);
    (subject.hello)(&sandbox);
    let found = subject.found(&resources).unwrap_or_else(|| panic!("inventory does not find a live sandbox"));
    assert_eq!(found.uid_slot, resources.uid_slot);
    assert_eq!(subject.labelled().len(), before.len() + 1, "inventory finds more than there is");
    sandbox.handle.kill().unwrap_or_else(|error| panic!("kill: {error}"));
    sandbox.handle.kill().unwrap_or_else(|error| panic!("kill, repeated: {error}"));
    wait_for_end(&sandbox);
    subject.destroy(&resources);
    drop(sandbox);
    subject.destroy(&resources);
    assert_eq!(subject.labelled(), before);
}

/// A plan alone leaves nothing.
pub fn plans_create_nothing(subject: &Subject<'_>) {
    let before = subject.labelled();
    let request = subject.request();
    let resources = subject.plan(&request, &[]);
    assert_eq!(resources.attempt, request.attempt);
    assert_eq!(resources.runtime, subject.runtime.name());
    for path in resources.cgroups.iter().chain(&resources.paths) {
        assert!(!path.exists(), "{} exists after the plan", path.display());
    }
    assert_eq!(subject.labelled(), before);
    subject.destroy(&resources);
}

/// What was prepared and never launched can be destroyed.
pub fn a_partial_preparation_can_be_destroyed(subject: &Subject<'_>) {
    let before = subject.labelled();
    let request = subject.request();
    let resources = subject.plan(&request, &[]);
    let prepared = subject
        .runtime
        .prepare(&request, &resources, &Stop::default())
        .unwrap_or_else(|error| panic!("prepare: {error}"));
    drop(prepared);
    subject.destroy(&resources);
    assert_eq!(subject.labelled(), before);
    for path in resources.cgroups.iter().chain(&resources.paths) {
        assert!(!path.exists(), "{} is left", path.display());
    }
}

/// Two sandboxes at once have different places of user ids, where there are such, and one's end does not touch the other.
pub fn sandboxes_share_no_ids(subject: &Subject<'_>) {
    let (first, first_sandbox) = subject.start(&[]);
    let taken: Vec<u32> = first.uid_slot.into_iter().collect();
    let (second, second_sandbox) = subject.start(&taken);
    if first.uid_slot.is_some() {
        assert_ne!(first.uid_slot, second.uid_slot);
    }
    subject.destroy(&first);
    wait_for_end(&first_sandbox);
    (subject.hello)(&second_sandbox);
    assert!(subject.found(&first).is_none() && subject.found(&second).is_some());
    subject.destroy(&second);
    wait_for_end(&second_sandbox);
}

/// A sandbox does not outlive the handle on it.
pub fn dropping_kills(subject: &Subject<'_>) {
    let (resources, sandbox) = subject.start(&[]);
    let ended = sandbox.handle.ended().try_clone_to_owned().unwrap_or_else(|error| panic!("{error}"));
    drop(sandbox);
    wait_readable(PollFd::new(&ended, PollFlags::IN));
    subject.destroy(&resources);
}

impl Subject<'_> {
    fn request(&self) -> Request {
        Request { attempt: (self.attempt)(), spec: RunSpec::new(["true"]), dir: self.dir.to_owned() }
    }

    fn plan(&self, request: &Request, taken: &[u32]) -> Resources {
        self.runtime.plan(request, taken).unwrap_or_else(|error| panic!("plan: {error}"))
    }

    fn start(&self, taken: &[u32]) -> (Resources, Sandbox) {
        let request = self.request();
        let resources = self.plan(&request, taken);
        let prepared = self
            .runtime
            .prepare(&request, &resources, &Stop::default())
            .unwrap_or_else(|error| panic!("prepare: {error}"));
        let launched = self.runtime.launch(prepared.launch, prepared.descriptors);
        (resources, launched.unwrap_or_else(|error| panic!("launch: {error}")))
    }

    fn destroy(&self, resources: &Resources) {
        for step in self.runtime.destroy(resources) {
            assert_eq!(step.error, None, "{}", step.step);
        }
    }

    fn inventory(&self) -> Vec<Resources> {
        self.runtime.inventory().unwrap_or_else(|error| panic!("inventory: {error}"))
    }

    fn labelled(&self) -> Vec<AttemptId> {
        self.inventory().into_iter().map(|resources| resources.attempt).collect()
    }

    fn found(&self, wanted: &Resources) -> Option<Resources> {
        self.inventory().into_iter().find(|resources| resources.attempt == wanted.attempt)
    }
}

fn wait_for_end(sandbox: &Sandbox) {
    wait_readable(PollFd::from_borrowed_fd(sandbox.handle.ended(), PollFlags::IN));
}

fn wait_readable(polled: PollFd<'_>) {
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let ready = rustix::io::retry_on_intr(|| poll(&mut [polled.clone()], Some(&patience)));
    assert_eq!(ready, Ok(1), "the sandbox did not end");
}
