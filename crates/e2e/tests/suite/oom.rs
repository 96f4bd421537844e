//! An agent that has no more memory: the kernel kills it, and what it ran goes on.

use std::{
    fs,
    path::{Path, PathBuf},
};

use holm_e2e::{World, eventually, host, noise, unique};

/// The least that a group can be given so that a process in it gets as far as to ask for more.
const LIMIT_BYTES: u64 = 512 * 1024;

/// A memory group of its own, removed with whatever becomes of the test.
struct MemoryGroup {
    dir: PathBuf,
    is_unified: bool,
}

impl MemoryGroup {
    /// Nothing where this user may make none.
    fn new() -> Option<Self> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let is_unified = !v1.join("memory.limit_in_bytes").exists() && !v1.join("memory.usage_in_bytes").exists();
        let base = if is_unified { Path::new("/sys/fs/cgroup") } else { v1 };
        let dir = base.join(unique("holm-e2e-memory"));
        fs::create_dir(&dir).ok()?;
        let group = Self { dir, is_unified };
        let limit = if is_unified { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(group.dir.join(limit), LIMIT_BYTES.to_string()).ok()?;
        Some(group)
    }

    /// Moves a process into it. What it has already stays where it was counted.
    fn take_in(&self, pid: u32) {
        fs::write(self.dir.join("cgroup.procs"), pid.to_string()).expect("a process to move");
    }

    /// How many processes the kernel has killed in it.
    fn kills(&self) -> u64 {
        let file = if self.is_unified { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.dir.join(file)).expect("a file of the kernel");
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|number| number.trim().parse().ok()).unwrap_or_else(|| panic!("{file}: {text}"))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let removed = fs::remove_dir(&self.dir);
        assert!(removed.is_ok() || std::thread::panicking(), "{}: {removed:?}", self.dir.display());
    }
}

#[test]
fn an_agent_that_the_kernel_kills_for_memory_loses_neither_run_nor_line() {
    let group = MemoryGroup::new();
    if !host::is_root() {
        assert!(group.is_none(), "a plain user has no group to limit");
        return;
    }
    let group = group.expect("root can limit memory");
    let mut world = World::with_server();
    world.start_agent("a");
    let gate = world.folder("gate");
    let mount = format!("{}:/gate", gate.display());
    let script = "seq 1 1000; until test -e /gate/open; do sleep 0.05; done; python3 -c \"$1\"; \
                  until test -e /gate/end; do sleep 0.05; done; seq 40001 40100";
    let much = noise::program(1_001, 40_000);
    let run = world.detach(["--mount", &mount, "--", "sh", "-c", script, "sh", &much]);
    eventually("the first lines", || world.logs(&run).text().ends_with("\n1000\n").then_some(()));
    group.take_in(world.agent_pid("a"));
    // Now it has much to read and to send, and no memory for that.
    fs::write(gate.join("open"), "").expect("a file");
    world.agent_is_killed("a");
    assert_eq!(group.kills(), 1);
    drop(group);
    let doctor = world.holm(["doctor", "--home", &world.dir().join("agent-a").display().to_string()]);
    let words = ["none is at work, and 1 of its attempts", "where memory ran out"];
    assert!(words.iter().all(|word| doctor.text().contains(word)), "{doctor}");
    let view = world.show(&run);
    assert_eq!((&view["state"], &view["fence"]), (&"running".into(), &1.into()), "{view}");
    world.start_agent("a");
    fs::write(gate.join("end"), "").expect("a file");
    let view = world.until_ended(&run);
    assert_eq!((&view["outcome"]["kind"], &view["fence"]), (&"succeeded".into(), &1.into()), "{view}");
    let counted = |from: u32, to: u32| (from..=to).map(|number| format!("{number}\n")).collect::<String>();
    let wanted = counted(1, 1_000) + &noise::written(&much) + &counted(40_001, 40_100);
    assert!(world.logs(&run).text() == wanted, "each line is there once and in order");
    assert_eq!(world.events_of(&run, "claimed").len(), 1);
}
