//! Hostile workloads: whatever a command does, its run ends with a reason that says what happened, and everything else lives.
//!
//! Each test ends with another run on the same installation ([`lives_on`]); that nothing is left is checked by the world when
//! it is dropped. A plain user's host limits neither memory nor processes nor processor time: what would then hit the host
//! itself is left out there, after it was asserted that the run says so.

mod output;
mod processes;
mod resources;
mod terminal;

use holm_e2e::{Ran, World, eventually, host};
use serde_json::Value;

/// How a run ended, by the API.
struct Ended {
    view: Value,
}

impl Ended {
    #[track_caller]
    fn newest(world: &World) -> Self {
        Self { view: world.until_ended(&world.newest()) }
    }

    fn reason(&self) -> &str {
        self.view["outcome"]["reason"].as_str().unwrap_or("none")
    }

    fn used(&self, what: &str) -> Option<u64> {
        self.view["usage"][what].as_u64()
    }
}

/// Python to its end, with limits.
#[track_caller]
fn python(world: &World, limits: &[&str], program: &str) -> Ran {
    world.run(limits.iter().copied().chain(["--", "/usr/bin/python3", "-c", program]))
}

/// Whether the host enforces a limit; root always can.
#[track_caller]
fn enforces(world: &World, limit: &str) -> bool {
    // A host that has not registered yet would seem to lack nothing.
    let hosts = eventually("the host is known", || {
        let hosts = world.http().get("/v1/hosts").is(200).json();
        hosts["hosts"][0]["runtimes"].is_array().then_some(hosts)
    });
    let runtimes = hosts["hosts"][0]["runtimes"].to_string();
    assert!(runtimes.contains("limits.disk"), "{hosts}");
    let missing = runtimes.contains(&format!("limits.{limit}: "));
    assert!(!missing || !host::is_root(), "root can enforce {limit}: {hosts}");
    !missing
}

/// Fails the test unless the reason is that one and has a page.
#[track_caller]
fn ended_as(world: &World, reason: &str) -> Ended {
    let ended = Ended::newest(world);
    assert_eq!(ended.reason(), reason, "{}", ended.view);
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../docs/reasons/{reason}.md"));
    assert!(page.is_file(), "{} is not there", page.display());
    ended
}

/// Shim, agent and server have survived: another run succeeds.
#[track_caller]
fn lives_on(world: &World) {
    assert_eq!(world.sh("echo alive").succeeds().text(), "alive\n");
}
