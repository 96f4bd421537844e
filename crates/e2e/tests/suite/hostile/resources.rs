//! Memory, files, descriptors, processor time: taken without measure, and what of it stands in the record.

use holm_e2e::{World, host};

use super::{ended_as, enforces, lives_on, python};

const HOG: &str = "x = bytearray(1 << 30)";

#[test]
fn a_memory_hog_is_killed_and_the_run_says_so() {
    let world = World::up();
    if enforces(&world, "memory") {
        let ran = python(&world, &["--memory", "64m"], HOG).exits(137);
        ran.complains_of(&["memory limit was reached", "--memory (it had 64 MiB"]);
        let ended = ended_as(&world, "out_of_memory");
        assert!(ended.used("memory_peak_bytes").is_some_and(|peak| peak >= 64 << 20), "{}", ended.view);
        let shown = world.holm(["show", &world.newest()]).succeeds();
        assert!(shown.text().contains("memory limit") && shown.text().contains("--memory"), "{shown}");
    }
    lives_on(&world);
}

#[test]
fn a_child_that_was_killed_for_want_of_memory_explains_a_failure_and_makes_none() {
    let world = World::up();
    if enforces(&world, "memory") {
        let script = |code: u8| format!("/usr/bin/python3 -c '{HOG}'; exit {code}");
        world
            .run(["--memory", "64m", "--", "sh", "-c", &script(3)])
            .exits(3)
            .complains_of(&["exit code 3", "--memory"]);
        ended_as(&world, "out_of_memory");
        world.run(["--memory", "64m", "--", "sh", "-c", &script(0)]).succeeds();
    }
    lives_on(&world);
}

#[test]
fn files_that_eat_all_memory_take_the_sandbox_and_nothing_else() {
    let world = World::up();
    if enforces(&world, "memory") {
        // The files stay whoever is killed, so in the end it is everybody, the guest too.
        let script = "while :; do dd if=/dev/zero of=/tmp/x bs=1M conv=notrunc oflag=append 2>/dev/null; done";
        let ran =
            world.run(["--memory", "64m", "--disk", "1g", "--timeout", "50s", "--", "sh", "-c", script]).exits(137);
        ran.complains_of(&["memory limit was reached"]);
        ended_as(&world, "out_of_memory");
    }
    lives_on(&world);
}

#[test]
fn a_disk_that_is_full_is_the_reason() {
    let world = World::up();
    let ran = world.run(["--disk", "16m", "--", "dd", "if=/dev/zero", "of=/tmp/x", "bs=1M"]).exits(1);
    ran.complains_of(&["No space left", "file system is full", "--disk (it had 16 MiB)"]);
    ended_as(&world, "disk_limit");
    // The same through the writable layer of a work dir.
    let work = world.folder("work");
    let dir = work.display().to_string();
    world.run(["--disk", "16m", "--dir", &dir, "--", "dd", "if=/dev/zero", "of=x", "bs=1M"]).exits(1);
    ended_as(&world, "disk_limit");
    assert_eq!(std::fs::read_dir(&work).map(Iterator::count).ok(), Some(0), "nothing of it reached the host");
    lives_on(&world);
}

#[test]
fn a_disk_without_room_for_another_file_is_full() {
    let world = World::up();
    let script = "n = 0\nwhile True:\n    open(f'/tmp/{n}', 'w').close()\n    n += 1";
    python(&world, &["--disk", "1m"], script).exits(1).complains_of(&["No space left", "file system is full"]);
    ended_as(&world, "disk_limit");
    lives_on(&world);
}

#[test]
fn a_disk_that_was_full_and_is_not_any_more_is_no_reason() {
    let world = World::up();
    let script = "dd if=/dev/zero of=/tmp/x bs=1M 2>/dev/null; rm /tmp/x; exit 4";
    world.run(["--disk", "16m", "--", "sh", "-c", script]).exits(4);
    ended_as(&world, "command_failed");
    lives_on(&world);
}

#[test]
fn descriptors_run_out_inside_and_nowhere_else() {
    let world = World::up();
    let script = "import socket\nkept = []\nwhile True: kept.extend(socket.socketpair())";
    let ran = python(&world, &[], script).exits(1);
    ran.complains_of(&["Too many open files"]);
    ended_as(&world, "command_failed");
    lives_on(&world);
}

#[test]
fn a_processor_hog_gets_its_share_and_the_record_says_how_much() {
    let world = World::up();
    let ran = python(&world, &["--cpus", "0.25", "--timeout", "4s"], "while True: pass").exits(124);
    ran.complains_of(&["time limit of 4s", "--timeout"]);
    let ended = ended_as(&world, "timeout");
    let cpu = ended.used("cpu_user_us").zip(ended.used("cpu_system_us")).map(|(user, system)| user + system);
    if enforces(&world, "cpu") {
        // A quarter of four seconds, and what the guest takes to start and end.
        assert!(cpu.is_some_and(|micros| (100_000..2_000_000).contains(&micros)), "{}", ended.view);
    } else {
        assert_eq!(cpu, None, "of what was killed nobody knows the whole: {}", ended.view);
    }
    lives_on(&world);
}

#[test]
fn what_a_run_used_is_told_and_what_nobody_counts_is_left_out() {
    let world = World::up();
    let script = "import os, time\nx = bytearray(48 << 20)\nend = time.process_time() + 0.5\n\
                  while time.process_time() < end: pass\nprint('y' * 999)";
    python(&world, &[], script).succeeds();
    let run = world.newest();
    let ended = super::Ended::newest(&world);
    assert_eq!(ended.used("log_bytes"), Some(1_000), "{}", ended.view);
    let cpu = ended.used("cpu_user_us").zip(ended.used("cpu_system_us")).map(|(user, system)| user + system);
    assert!(cpu.is_some_and(|micros| (450_000..5_000_000).contains(&micros)), "{}", ended.view);
    let (memory, pids) = (ended.used("memory_peak_bytes"), ended.used("pids_peak"));
    if host::is_root() {
        assert!(memory.is_some_and(|peak| (48 << 20..200 << 20).contains(&peak)), "{}", ended.view);
        assert!(pids.is_some_and(|peak| (2..=12).contains(&peak)), "{}", ended.view);
    } else {
        let counted =
            |limit, value: Option<u64>| assert_eq!(value.is_some(), enforces(&world, limit), "{}", ended.view);
        counted("memory", memory);
        counted("pids", pids);
        let usage = ended.view["usage"].as_object().expect("an object");
        assert!(usage.values().all(serde_json::Value::is_number), "absent, and not null: {}", ended.view);
    }
    let shown = world.holm(["show", &run]).succeeds();
    let used = shown.text().lines().find(|line| line.starts_with("used")).expect("a line").to_owned();
    assert!(used.contains("s cpu") && used.contains("output"), "{used}");
    assert_eq!(used.contains("memory at most"), memory.is_some(), "{used}");
    let json = world.holm(["show", "--json", &run]).succeeds().json();
    assert_eq!(json[0]["usage"], ended.view["usage"]);
}

/// More than a run reads and writes beside what it was told to: programs, and what a file system keeps of a file.
const OTHER_BYTES: u64 = 64 << 20;

#[test]
fn what_a_run_read_from_a_device_and_wrote_to_it_is_told_or_left_out() {
    let world = World::up();
    // Temporary files may lie in memory, these do not.
    let disk = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let mount = format!("{}:/disk", disk.path().display());
    // Neither stays in the page cache, nor comes from there.
    let write = "dd if=/dev/zero of=/disk/x bs=1M count=32 conv=fsync";
    let both = format!("{write} && dd if=/disk/x of=/dev/null bs=1M count=16 iflag=direct");
    world.run(["--mount", &mount, "--", "sh", "-c", &both]).succeeds();
    let ended = super::Ended::newest(&world);
    for (what, bytes) in [("io_write_bytes", 32 << 20), ("io_read_bytes", 16 << 20)] {
        let used = ended.used(what);
        assert!(used.is_some_and(|used| (bytes..bytes + OTHER_BYTES).contains(&used)), "{what}: {}", ended.view);
    }
    let shown = world.holm(["show", &world.newest()]).succeeds();
    assert!(shown.text().contains(" read, ") && shown.text().contains(" written, "), "{shown}");
    // Of what was killed a host without such control groups knows nothing.
    let mut killed = world.running(["--mount", &mount, "--", "sh", "-c", &format!("{write}; echo written; sleep 600")]);
    killed.says("written");
    world.holm(["cancel", "--kill", &world.newest()]).succeeds();
    killed.wait();
    let ended = super::Ended::newest(&world);
    let used = ended.used("io_write_bytes");
    assert!(used.is_none_or(|used| used >= 32 << 20), "less than it wrote: {}", ended.view);
}
