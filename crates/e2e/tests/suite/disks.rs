//! Disks that are full, of bytes or of files: under the database, under the objects, under an agent, under a home that is new.
//! Floors of free space, which would have seen it coming, are off where a disk is filled; for root only, who can make a file system to fill.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use holm_e2e::{Running, World, eventually, host, noise, postgres::Postgres};

/// How many lines of noise are more than a disk of 24 MiB holds.
const LOUD_LINES: u32 = 400_000;

/// How much room files that come and go may leave on a disk that is full, in bytes: far less than a file of a spool has.
const LEFT_MAX: u64 = 64 << 10;

/// Takes all the room that is left, each time more to what it took before; removing it gives it back.
fn fill(disk: &Path) -> PathBuf {
    let path = disk.join("ballast");
    let mut file = fs::File::options().create(true).append(true).open(&path).expect("a file");
    for piece in [64 << 10, 1 << 10, 1] {
        let bytes = vec![1; piece];
        let error = loop {
            if let Err(error) = file.write_all(&bytes) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    }
    path
}

/// Keeps a disk full for a while; returns how much room that took.
fn keep_full(disk: &Path, long: Duration) -> u64 {
    let length = || fs::metadata(fill(disk)).expect("a file").len();
    let (before, begun) = (length(), Instant::now());
    while begun.elapsed() < long {
        std::thread::sleep(Duration::from_millis(50));
        fill(disk);
    }
    length() - before
}

/// A world with one agent, which has a disk of its own and lets it become full.
fn agent_on_small_disk() -> (World, PathBuf) {
    let mut world = World::with_server();
    let disk = world.small_disk("agent-only", "24m");
    world.start_agent_with("only", &["--host-storage-floor", "0"]);
    (world, disk)
}

fn counted(last: u32) -> String {
    (1..=last).map(|number| format!("{number}\n")).collect()
}

#[test]
fn a_full_disk_under_the_database_costs_no_line_and_no_run() {
    if !host::is_root() {
        return;
    }
    let mut world = World::on_file();
    let disk = world.small_disk("home", "32m");
    world.start_server_with(&["--storage-floor", "0"]);
    world.start_agent("only");
    let script = "import time\nfor n in range(1, 1001):\n    print(n, flush=True)\n    time.sleep(0.01)\n";
    let run = world.detach(["--", "/usr/bin/python3", "-c", script]);
    let mut follower = Running::start(world.command().args(["logs", "-f", &run]));
    follower.says("1\n");
    let ballast = fill(&disk);
    let token = || world.http().post("/v1/tokens", &serde_json::json!({ "name": "x", "role": "member" }));
    let refused = eventually("nothing can be stored", || Some(token()).filter(|answer| answer.status != 201));
    refused.is_problem(503, "unavailable");
    world.http().get(&format!("/v1/runs/{run}")).is(200);
    let doctor = world.holm(["doctor"]).exits(1);
    assert!(doctor.text().contains("full: 0 bytes are free"), "{doctor}");
    // The command goes on writing, and its lease is not renewed.
    std::thread::sleep(Duration::from_secs(3));
    fs::remove_file(ballast).expect("a file");
    let view = eventually("the run has ended", || Some(world.show(&run)).filter(|run| run["state"] == "ended"));
    assert_eq!((&view["outcome"]["kind"], &view["fence"]), (&"succeeded".into(), &1.into()), "{view}");
    assert!(world.logs(&run).text() == counted(1_000), "lines are missing, doubled or out of order");
    assert!(follower.wait().succeeds().text() == counted(1_000), "a follower missed something");
    token().is(201);
}

#[test]
fn a_full_disk_under_postgres_costs_no_line_and_no_run() {
    if !host::is_root() {
        return;
    }
    let postgres = Postgres::start();
    let mut world = World::on_database(&postgres.url(postgres.port()));
    let disk = world.small_disk("tables", "64m");
    postgres.keeps_tables_in(&disk);
    world.start_server();
    world.start_agent("only");
    let run = world.detach(noise::command(60_000));
    let follower = Running::start(world.command().args(["logs", "-f", &run]));
    world.until_state(&run, "running");
    let ballast = fill(&disk);
    eventually("nothing can be stored", || postgres.has_said("No space left on device").then_some(()));
    world.http().get(&format!("/v1/runs/{run}")).is(200);
    // The command goes on writing.
    std::thread::sleep(Duration::from_secs(3));
    assert_ne!(world.show(&run)["state"], "ended", "its output is not stored");
    fs::remove_file(ballast).expect("a file");
    let view = eventually("the run has ended", || Some(world.show(&run)).filter(|run| run["state"] == "ended"));
    assert_eq!((&view["outcome"]["kind"], &view["fence"]), (&"succeeded".into(), &1.into()), "{view}");
    assert!(noise::is_whole(world.logs(&run).text(), 60_000), "lines are missing, doubled or out of order");
    assert!(noise::is_whole(follower.wait().succeeds().text(), 60_000), "a follower missed something");
    assert_eq!(world.run(["--", "echo", "new"]).succeeds().text(), "new\n");
}

#[test]
fn a_full_disk_under_the_objects_costs_no_line_and_no_run() {
    if !host::is_root() {
        return;
    }
    let mut world = World::new();
    let disk = world.small_disk("home/server/blobs", "32m");
    world.start_up();
    let ballast = fill(&disk);
    let run = world.detach(noise::command(60_000));
    eventually("its output is refused", || world.up_complains().contains("store a blob").then_some(()));
    assert_eq!(world.run(["--", "echo", "short"]).succeeds().text(), "short\n", "what needs no object goes on");
    assert_ne!(world.show(&run)["state"], "ended", "its output is not stored");
    let doctor = world.holm(["doctor"]).exits(1);
    assert!(doctor.text().contains("blobs: 0 B free"), "{doctor}");
    fs::remove_file(ballast).expect("a file");
    assert_eq!(world.until_ended(&run)["outcome"]["kind"], "succeeded");
    assert!(noise::is_whole(world.logs(&run).text(), 60_000), "lines are missing, doubled or out of order");
}

#[test]
fn a_full_disk_under_the_agent_costs_no_line_and_no_run() {
    if !host::is_root() {
        return;
    }
    let (mut world, disk) = agent_on_small_disk();
    let script = "import time\nfor n in range(1, 601):\n    print(n, flush=True)\n    time.sleep(0.03)\n";
    let neighbour = world.detach(["--", "/usr/bin/python3", "-c", script]);
    eventually("its output", || world.logs(&neighbour).text().starts_with("1\n").then_some(()));
    // Nobody takes the output meanwhile, so it stays on the disk.
    let program = noise::program(1, LOUD_LINES);
    let loud = world.detach(["--", "sh", "-c", "sleep 1; exec /usr/bin/python3 -c \"$0\"", &program]);
    world.until_state(&loud, "running");
    world.kill_server();
    let free = || {
        let stat = rustix::fs::statvfs(&disk).expect("a file system");
        stat.f_bavail * stat.f_frsize
    };
    eventually("the disk is nearly full", || (free() < 1 << 20).then_some(()));
    // What is too little for the loud one is no room for its neighbour, either: a new page is not to be had.
    // What was on its way to the disk is given back at first.
    keep_full(&disk, Duration::from_secs(1));
    let left = keep_full(&disk, Duration::from_secs(4));
    assert!(left <= LEFT_MAX, "room is made by what is taken, and by nothing else: {left} bytes");
    world.start_server();
    for run in [&loud, &neighbour] {
        let ended = world.until_ended(run);
        assert_eq!((&ended["outcome"]["kind"], &ended["fence"]), (&"succeeded".into(), &1.into()), "{ended}");
    }
    assert!(noise::is_whole(world.logs(&loud).text(), LOUD_LINES), "lines are missing, doubled or out of order");
    assert!(world.logs(&neighbour).text() == counted(600), "lines are missing, doubled or out of order");
    assert_eq!(world.run(["--", "echo", "new"]).succeeds().text(), "new\n");
}

#[test]
fn a_run_that_is_cancelled_on_a_full_disk_ends_soon_and_says_what_is_missing() {
    if !host::is_root() {
        return;
    }
    let (world, disk) = agent_on_small_disk();
    let run = world.detach(["--", "sh", "-c", "echo kept; while sleep 0.1; do seq 1000; done"]);
    eventually("its output", || world.logs(&run).text().starts_with("kept\n").then_some(()));
    keep_full(&disk, Duration::from_secs(3));
    world.holm(["cancel", &run]).succeeds();
    // Without the cancellation, room would be waited for for five minutes.
    let ended = world.until_ended(&run);
    let outcome = &ended["outcome"];
    assert_eq!((&outcome["kind"], &ended["fence"]), (&"cancelled".into(), &1.into()), "{ended}");
    assert!(outcome["message"].as_str().is_some_and(|text| text.contains("no room left")), "{ended}");
    assert!(world.logs(&run).text().starts_with("kept\n"), "what was stored before is there");
}

/// Bytes are free there, and no file can be made.
#[test]
fn a_disk_without_room_for_files_takes_no_runs_until_it_has_some() {
    if !host::is_root() {
        return;
    }
    let mut world = World::with_server();
    let disk = world.small_disk("agent-only", "1g,nr_inodes=60");
    world.start_agent("only");
    let run = world.detach(["--", "echo", "waited"]);
    let hosts = eventually("the server was told", || {
        let hosts = world.holm(["hosts"]).succeeds();
        hosts.text().contains("files can be made (inodes), fewer than").then_some(hosts)
    });
    assert!(hosts.text().contains("it takes nothing new"), "{hosts}");
    let doctor = world.holm(["doctor", "--home", &disk.display().to_string()]).exits(1);
    assert!(doctor.text().contains("files can be made (inodes), fewer than"), "{doctor}");
    assert_eq!(world.show(&run)["state"], "queued");
    world.more_files(&disk);
    assert_eq!(world.until_ended(&run)["outcome"]["kind"], "succeeded");
    assert_eq!(world.logs(&run).text(), "waited\n");
}

#[test]
fn a_server_without_room_for_files_refuses_runs_until_it_has_some() {
    if !host::is_root() {
        return;
    }
    let mut world = World::new();
    let disk = world.small_disk("home", "1g,nr_inodes=60");
    world.start_up();
    world.run(["--", "true"]).exits(125).complains_of(&["files can be made", "(inodes)", "storage_full"]);
    world.doctor_says(1, &["files can be made (inodes), fewer than"]);
    world.more_files(&disk);
    assert_eq!(world.run(["--", "echo", "room"]).succeeds().text(), "room\n");
    world.doctor_says(0, &["home"]);
}

/// Not even the log of the server has room then.
#[test]
fn a_first_command_on_a_full_disk_says_so() {
    if !host::is_root() {
        return;
    }
    let mut world = World::new();
    let disk = world.small_disk("home", "1m");
    fill(&disk);
    let full = ["up.log is empty; it said: cannot lock", "No space left on device", "make room on that disk", "--home"];
    world.run(["--", "true"]).exits(125).complains_of(&full);
    world.doctor_says(1, &["full: 0 bytes are free"]);
}
