//! A database that is restored from a copy, while agents hold what was granted since.

use std::{fs, path::Path, process::Command, time::Duration};

use holm_e2e::{World, eventually, ran};

/// How long a lease and what is waited beyond it last.
const LEASES: [&str; 4] = ["--lease-ttl", "3s", "--lease-margin", "1s"];
/// Beyond every fence of before.
const FENCES: u64 = 1_000_000;
/// Has its name for itself as long as it lives, and says so where another has it.
const HOLDS: &str = r#"
import fcntl, os, sys, time
mine = open(f"/seen/{sys.argv[1]}", "w")
try:
    fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    open("/seen/overlap", "w").close()
while not os.path.exists("/seen/enough"):
    time.sleep(0.02)
"#;

/// Copies the database of a live server, as the guide says.
fn copy(database: &Path, copy: &Path) {
    let script = "import sqlite3, sys\nsqlite3.connect(sys.argv[1]).backup(sqlite3.connect(sys.argv[2]))\n";
    ran::run(Command::new("python3").args(["-c", script]).args([database, copy])).succeeds();
}

#[test]
fn a_restored_copy_refuses_old_fences_and_executes_nothing_twice_at_once() {
    let mut world = World::on_file();
    world.start_server_with(&LEASES);
    world.start_agent("only");
    let seen = world.folder("seen");
    let mount = format!("{}:/seen", seen.display());
    let holds = |world: &World, name: &str| {
        let run = world.detach(["--mount", &mount, "--", "/usr/bin/python3", "-c", HOLDS, name]);
        world.until_state(&run, "running");
        eventually("it lives", || seen.join(name).exists().then_some(run.clone()))
    };
    let (database, kept) = (world.home().join("server/holm.db"), world.dir().join("copy.db"));
    let before = holds(&world, "before");
    copy(&database, &kept);
    let after = holds(&world, "after");
    world.kill_server();
    for beside in ["db-wal", "db-shm"] {
        fs::remove_file(database.with_extension(beside)).expect("removed");
    }
    fs::copy(&kept, &database).expect("restored");
    // What is waited is longer than before, so that it is seen.
    world.start_server_with(&["--lease-ttl", "3s", "--lease-margin", "10s", "--restored"]);
    world.http().get(&format!("/v1/runs/{after}")).is_problem(404, "not_found");
    let waits = world.holm(["show", &before]).succeeds();
    assert!(waits.text().contains("it is granted anew from "), "{waits}");
    let held = eventually("it is granted anew", || {
        let run = world.show(&before);
        (run["state"] == "running").then_some(run)
    });
    assert_eq!(held["attempt"], 2, "{held}");
    assert!(held["fence"].as_u64().is_some_and(|fence| fence > FENCES), "{held}");
    assert_eq!(world.events_of(&before, "lease_expired").len(), 1);
    // Whoever still had it would have been met by now.
    std::thread::sleep(Duration::from_secs(1));
    fs::write(seen.join("enough"), "").expect("a file");
    assert_eq!(world.until_ended(&before)["outcome"]["kind"], "succeeded");
    assert!(!seen.join("overlap").exists(), "two sandboxes of one run");
    world.run(["--", "true"]).succeeds();
}
