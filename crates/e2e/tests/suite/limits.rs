//! Memory, processes, disk: enforced, or said not to be.

use holm_e2e::{World, host};
use serde_json::Value;

/// What the run says could not be enforced.
fn unenforced(view: &Value) -> String {
    view["sandbox"]["unenforced"].to_string()
}

#[test]
fn memory_is_limited_or_said_not_to_be() {
    let world = World::up();
    let script = "x = bytearray(400 * 1024 * 1024)\nprint(len(x))";
    let ran = world.run(["--memory", "64m", "--", "/usr/bin/python3", "-c", script]);
    let view = world.show(&world.newest());
    if unenforced(&view).contains("memory") {
        assert!(!host::is_root(), "root can enforce it: {view}");
        ran.succeeds();
        return;
    }
    assert!(ran.code == 137 || ran.code == 1, "killed, or told that there is no more: {ran}");
    assert!(!ran.text().contains("419430400"), "{ran}");
    world.run(["--memory", "1g", "--", "/usr/bin/python3", "-c", script]).succeeds();
}

#[test]
fn processes_are_limited_or_said_not_to_be() {
    let world = World::up();
    let script = "import os, time\nn = 0\ntry:\n    while n < 200:\n        if os.fork() == 0:\n            time.sleep(60)\n            \
                  os._exit(0)\n        n += 1\nexcept OSError as error:\n    print('refused', error.errno)\nprint('made', n)";
    let ran = world.run(["--pids", "40", "--", "/usr/bin/python3", "-c", script]).succeeds();
    let view = world.show(&world.newest());
    let made: u32 = ran.text().lines().find_map(|line| line.strip_prefix("made ")?.parse().ok()).expect("a number");
    if unenforced(&view).contains("pids") {
        assert!(!host::is_root(), "root can enforce it: {view}");
    } else {
        // The command itself is one of them; the guest's own come on top of what was asked for.
        assert!(ran.text().contains("refused 11") && made == 39, "{ran}");
        for (pids, made) in [("1", "made 0"), ("2", "made 1"), ("7", "made 6")] {
            let ran = world.run(["--pids", pids, "--", "/usr/bin/python3", "-c", script]).succeeds();
            assert!(ran.text().lines().any(|line| line == made), "{pids} processes: {ran}");
        }
    }
}

#[test]
fn the_writable_layer_is_limited() {
    let world = World::up();
    let script = "dd if=/dev/zero of=/tmp/big bs=1M count=64 2>&1; ls -l /tmp/big";
    let ran = world.run(["--disk", "16m", "--", "sh", "-c", script]);
    let view = world.show(&world.newest());
    if unenforced(&view).contains("disk") {
        assert!(!host::is_root(), "root can enforce it: {view}");
    } else {
        assert!(ran.text().contains("No space left on device"), "{ran}");
    }
    world.run(["--disk", "128m", "--", "sh", "-c", script]).succeeds();
}

#[test]
fn required_limits_are_enforced_or_the_run_is_refused() {
    let world = World::up();
    let ran = world.run(["--require-limits", "--memory", "64m", "--", "echo", "ran"]);
    let hosts = world.http().get("/v1/hosts").is(200).json();
    let unenforced = hosts["hosts"][0]["runtimes"].as_array().into_iter().flatten();
    let unenforced: Vec<&str> = unenforced
        .flat_map(|runtime| runtime["unenforced"].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .collect();
    // What else cannot be enforced (ids of its own, say) is told in the run and refuses none.
    if unenforced.iter().any(|reason| reason.starts_with("limits.")) {
        assert!(!host::is_root(), "root can enforce every limit: {hosts}");
        ran.exits(125).complains_of(&["cannot enforce", "limits.memory"]);
    } else {
        assert_eq!(ran.succeeds().text(), "ran\n");
        let view = world.show(&world.newest());
        assert!(!view["sandbox"]["unenforced"].to_string().contains("limits."), "{view}");
    }
}

#[test]
fn what_is_not_enforced_stands_in_the_run() {
    let world = World::up();
    let ran = world.run(["--", "echo", "ran"]).succeeds();
    let run = world.newest();
    let view = world.show(&run);
    let shown = world.holm(["show", &run]).succeeds();
    let told: Vec<&str> =
        view["sandbox"]["unenforced"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    // A sandbox of root has ids of its own; one of a plain user has not, and says so to who runs it and who looks later.
    assert_eq!(told.iter().any(|reason| reason.starts_with("ids.unique")), !host::is_root(), "{view}");
    for reason in &told {
        assert!(shown.text().contains(reason), "`holm show` keeps {reason} to itself: {shown}");
        assert!(ran.complaint().contains(reason), "`holm run` keeps {reason} to itself: {ran}");
    }
    let has_landlock = std::fs::read_to_string("/proc/kallsyms").is_ok_and(|symbols| symbols.contains("landlock_"));
    assert!(!has_landlock || !told.iter().any(|reason| reason.starts_with("landlock")), "{view}");
}

#[test]
fn resource_limits_inside_cannot_be_raised_above_the_hosts() {
    let world = World::up();
    // Careful programs forbid themselves core dumps: they are told that it is done, and nothing changes.
    let script = "import resource as r\nprint(r.getrlimit(r.RLIMIT_NOFILE)[1], *r.getrlimit(r.RLIMIT_CORE))\n\
                  r.setrlimit(r.RLIMIT_CORE, (0, 0))\nprint(*r.getrlimit(r.RLIMIT_CORE))";
    let ran = world.run(["--", "/usr/bin/python3", "-c", script]).succeeds();
    let numbers: Vec<i64> = ran.text().split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let hard = |resource| rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let host = hard(rustix::process::Resource::Nofile);
    assert!(numbers[0] > 0 && numbers[0].unsigned_abs() <= host, "{numbers:?}, host {host}");
    // No core file, and no handler of the host's for a crash inside either: the kernel takes 1 for that (core(5)).
    let core = if hard(rustix::process::Resource::Core) == 0 { 0 } else { 1 };
    assert_eq!(numbers[1..], [core; 4], "{ran}");
}

#[test]
fn output_is_limited() {
    let world = World::up();
    let ran = world.run(["--log-limit", "64k", "--", "yes"]).exits(137);
    ran.complains_of(&["65536 bytes of output", "--log-limit (it had 64 KiB)"]);
    let view = world.show(&world.newest());
    assert_eq!(view["outcome"]["reason"], "log_limit", "{view}");
    assert_eq!(world.logs(&world.newest()).text().len(), 65_536, "what it may have is kept, and no more");
    world.run(["--log-limit", "1k", "--", "true"]).exits(125).complains_of(&["--log-limit", "4096 to"]);
    // Exactly as much as it may have.
    world.run(["--log-limit", "4k", "--", "head", "-c", "4096", "/dev/zero"]).succeeds();
}

#[test]
fn below_the_floor_of_free_space_nothing_is_taken_until_there_is_room_again() {
    let mut world = World::new();
    let floor = if host::is_root() { "32m" } else { "8000g" };
    let flags = ["--storage-floor", floor, "--host-storage-floor", floor];
    if !host::is_root() {
        // No file system of its own to fill: one that is never full enough.
        world.start_up_with(&flags);
        world.run(["--", "true"]).exits(125).complains_of(&["bytes are free"]);
        return;
    }
    let home = world.small_disk("home", "64m");
    world.start_up_with(&flags);
    world.run(["--", "true"]).succeeds();
    std::fs::write(home.join("ballast"), vec![1; 40 << 20]).expect("room");
    world.run(["--", "true"]).exits(125).complains_of(&["bytes are free", "floor of 33554432"]);
    holm_e2e::eventually("the host says that it takes no runs", || {
        let hosts = world.http().get("/v1/hosts").is(200).json();
        hosts.to_string().contains("holm.storage").then_some(())
    });
    let shown = world.holm(["hosts"]).succeeds();
    assert!(shown.text().contains("disk full"), "{shown}");
    std::fs::remove_file(home.join("ballast")).expect("a file");
    holm_e2e::eventually("the host takes runs again", || {
        let hosts = world.http().get("/v1/hosts").is(200).json();
        (!hosts.to_string().contains("holm.storage")).then_some(())
    });
    world.run(["--", "true"]).succeeds();
}

#[test]
fn a_run_that_needs_all_of_a_host_begins_once_the_host_is_free() {
    let mut world = World::new();
    world.start_up_with(&["--host-memory", "4g", "--runs-max", "4"]);
    // What is free while the first one runs is offered by itself; only together with the rest is it enough.
    let first = world.detach(["-m", "2500m", "--", "sleep", "1.5"]);
    world.until_state(&first, "running");
    let second = world.detach(["-m", "3g", "--", "true"]);
    world.until_ended(&first);
    assert_eq!(world.until_ended(&second)["outcome"]["kind"], "succeeded");
}
