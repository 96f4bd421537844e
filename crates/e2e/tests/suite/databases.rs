//! Databases that stop, are slow, are locked or are damaged, under live runs and those who follow them.

use std::{fs, path::PathBuf, time::Duration};

use holm_e2e::{Running, World, eventually, host, noise, postgres::Postgres, proxy::Proxy, ran};

/// Counts slowly enough that databases go and come back while it does.
fn count(last: u32) -> String {
    format!("import time\nfor n in range(1, {last} + 1):\n    print(n, flush=True)\n    time.sleep(0.01)\n")
}

fn counted(last: u32) -> String {
    (1..=last).map(|number| format!("{number}\n")).collect()
}

/// Waits until the run has more output than it had.
fn until_more_lines(world: &World, run: &str) {
    let stored = || {
        let page = world.http().get(&format!("/v1/runs/{run}/logs?limit=10000"));
        // A server that has just found its database again may still have an answer to give from before.
        (page.status == 200).then(|| page.json()["entries"].as_array().map_or(0, Vec::len))
    };
    let before = eventually("the log can be read", stored);
    eventually("more lines arrived", || stored().filter(|lines| *lines > before));
}

/// A run that counts, and those who follow it.
struct Followed {
    run: String,
    last: u32,
    followers: Vec<Running>,
}

impl Followed {
    /// With a server and an agent apart, so that one may be without the other.
    fn begin(mut world: World, last: u32) -> (World, Self) {
        world.start_server();
        world.start_agent("only");
        let run = world.detach(["--", "/usr/bin/python3", "-c", &count(last)]);
        world.until_state(&run, "running");
        let follow = || {
            let mut follower = Running::start(world.command().args(["logs", "-f", &run]));
            follower.says("1\n");
            follower
        };
        let followers = vec![follow(), follow(), follow()];
        (world, Self { run, last, followers })
    }

    /// The run ended once, in the sandbox in which it began, and everybody saw each line once.
    #[track_caller]
    fn ends_unharmed(self, world: &World) {
        let view = eventually("the run has ended", || {
            let answer = world.http().get(&format!("/v1/runs/{}", self.run));
            (answer.status == 200).then(|| answer.json()).filter(|run| run["state"] == "ended")
        });
        assert_eq!(view["outcome"]["kind"], "succeeded", "{view}");
        assert_eq!((&view["attempt"], &view["fence"]), (&1.into(), &1.into()), "the same sandbox all along: {view}");
        let wanted = counted(self.last);
        assert!(world.logs(&self.run).text() == wanted, "lines are missing, doubled or out of order");
        for follower in self.followers {
            assert!(follower.wait().succeeds().text() == wanted, "a follower missed something");
        }
        assert_eq!(world.events_of(&self.run, "ended").len(), 1);
    }
}

#[test]
fn postgres_that_is_stopped_or_crashes_and_comes_back_costs_no_line_and_no_run() {
    let mut postgres = Postgres::start();
    let (world, followed) = Followed::begin(World::on_database(&postgres.url(postgres.port())), 1_500);
    for end in [Postgres::stop, Postgres::crash] {
        until_more_lines(&world, &followed.run);
        end(&mut postgres);
        world.http().get("/readyz").is_problem(503, "unavailable");
        world.doctor_says(1, &["that --database", "did not answer", "refused"]);
        // The command goes on writing while nobody takes it.
        std::thread::sleep(Duration::from_millis(1_500));
        postgres.start_again();
        eventually("the server is ready again", || (world.http().get("/readyz").status == 200).then_some(()));
    }
    until_more_lines(&world, &followed.run);
    followed.ends_unharmed(&world);
    assert_eq!(world.run(["--", "echo", "new"]).succeeds().text(), "new\n");
}

#[test]
fn a_postgres_that_is_slow_or_silent_for_a_while_costs_no_line_and_no_run() {
    let postgres = Postgres::start();
    let proxy = Proxy::before(postgres.port());
    let (world, followed) = Followed::begin(World::on_database(&postgres.url(proxy.port())), 1_600);
    until_more_lines(&world, &followed.run);
    proxy.delays(Duration::from_millis(80));
    until_more_lines(&world, &followed.run);
    world.doctor_says(0, &["the one that --database", "answers within", "that is slow"]);
    proxy.stalls();
    world.http().get("/readyz").is_problem(503, "unavailable");
    std::thread::sleep(Duration::from_secs(3));
    proxy.delays(Duration::ZERO);
    until_more_lines(&world, &followed.run);
    followed.ends_unharmed(&world);
    proxy.stalls();
    world.doctor_says(1, &["that --database", "did not answer", "no server works"]);
    proxy.delays(Duration::ZERO);
}

/// What was connected before never hears that the other end is gone, and what it had locked stays so for a while.
#[test]
fn a_postgres_that_is_lost_without_a_word_is_found_again_within_a_lease() {
    let postgres = Postgres::start();
    let proxy = Proxy::before(postgres.port());
    let (world, followed) = Followed::begin(World::on_database(&postgres.url(proxy.port())), 3_000);
    until_more_lines(&world, &followed.run);
    proxy.abandons();
    until_more_lines(&world, &followed.run);
    followed.ends_unharmed(&world);
}

/// What was connected before goes on being answered, and nothing that it writes is taken.
#[test]
fn a_postgres_that_fails_over_to_its_standby_costs_no_line_and_no_run() {
    let primary = Postgres::start();
    let standby = primary.standby();
    let proxy = Proxy::before(primary.port());
    let (world, followed) = Followed::begin(World::on_database(&primary.url(proxy.port())), 1_500);
    until_more_lines(&world, &followed.run);
    primary.hands_over_to(&standby);
    proxy.leads_to(standby.port());
    let doctor = Running::start(world.command().arg("doctor"));
    // Neither of the two takes writes now, and the command goes on.
    world.http().get("/readyz").is_problem(503, "unavailable");
    let doctor = doctor.wait().exits(1);
    assert!(doctor.text().contains("read-only: it may be a standby"), "{doctor}");
    standby.is_promoted();
    until_more_lines(&world, &followed.run);
    followed.ends_unharmed(&world);
    assert_eq!(world.run(["--", "echo", "new"]).succeeds().text(), "new\n");
}

#[test]
fn a_database_that_does_not_answer_at_the_start_is_named_with_the_way_out() {
    let nowhere =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|taken| taken.local_addr()).expect("a port").port();
    let world = World::on_database(&format!("postgres://holm:hunter2@127.0.0.1:{nowhere}/holm"));
    let ran = world.holm(["server", "--listen", "127.0.0.1:0"]).exits(1);
    assert!(!ran.complaint().contains("hunter2"), "{ran}");
    ran.complains_of(&["cannot open the database", "--database", "refused"]);
    let doctor = world.doctor_says(1, &["did not answer", "refused"]);
    assert!(!doctor.text().contains("hunter2"), "{doctor}");
}

#[test]
fn a_file_has_one_server_by_whatever_name() {
    let mut world = World::on_file();
    world.start_server();
    let (link, second) = (world.dir().join("link.db"), world.dir().join("second.db"));
    std::os::unix::fs::symlink(file(&world), &link).expect("a link");
    let by_link = format!("sqlite:{}", link.display());
    for command in [
        &["server", "--listen", "127.0.0.1:0"][..],
        &["server", "--listen", "127.0.0.1:0", "--database", &by_link],
        &["up", "--private"],
    ] {
        let ran = world.holm(command).exits(1);
        ran.complains_of(&["another server (process ", ".db", "PostgreSQL"]);
    }
    world.kill_server();
    std::fs::hard_link(file(&world), &second).expect("a second name");
    world.holm(["server", "--listen", "127.0.0.1:0"]).exits(1).complains_of(&["several names"]);
    std::fs::remove_file(second).expect("a file");
    world.start_server();
}

/// The database of a world that keeps its records in a file.
fn file(world: &World) -> PathBuf {
    world.home().join("server/holm.db")
}

/// Another program that keeps the file of the database for itself, for so long.
fn lock_for(world: &World, seconds: u32) -> Running {
    let script = format!(
        "import sqlite3, sys, time\nfile = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)\n\
         file.execute('begin immediate')\nprint('locked', flush=True)\ntime.sleep({seconds})\nfile.execute('rollback')\n"
    );
    let mut locking = Running::start(std::process::Command::new("python3").args(["-c", &script]).arg(file(world)));
    locking.says("locked");
    locking
}

/// Another program that opens the file and closes it: all of it lies in the file then, nothing beside it.
fn gathered(world: &World) -> PathBuf {
    let path = file(world);
    let script = "import sqlite3, sys\nfile = sqlite3.connect(sys.argv[1])\nfile.execute('select * from orgs').fetchall()\n\
                  file.close()\n";
    ran::run(std::process::Command::new("python3").args(["-c", script]).arg(&path)).succeeds();
    assert!(!path.with_extension("db-wal").exists(), "somebody still uses it");
    path
}

#[test]
fn a_sqlite_file_that_another_program_locks_costs_no_line_and_no_run() {
    // No lease comes to its end meanwhile.
    let (world, followed) = Followed::begin(World::on_file_with("lease_ttl = \"2m\"\nlease_margin = \"5s\"\n"), 4_000);
    // For less, and for more, than the server waits for its own turn and then for the lock.
    for (seconds, is_waited_for) in [(3, true), (30, false)] {
        until_more_lines(&world, &followed.run);
        let locking = lock_for(&world, seconds);
        let doctor = Running::start(world.command().arg("doctor"));
        world.http().get(&format!("/v1/runs/{}", followed.run)).is(200);
        let token = world.http().post("/v1/tokens", &serde_json::json!({ "name": "x", "role": "member" }));
        if is_waited_for {
            token.is(201);
        } else {
            token.is_problem(503, "unavailable");
            let doctor = doctor.wait().exits(1);
            assert!(doctor.text().contains("(python3) keeps the database locked"), "{doctor}");
        }
        locking.wait().succeeds();
    }
    followed.ends_unharmed(&world);
}

#[test]
fn a_server_waits_for_a_locked_file_when_it_starts_and_says_so_when_that_is_too_long() {
    let mut world = World::on_file();
    world.start_up();
    world.run(["--", "echo", "kept"]).succeeds();
    let run = world.newest();
    world.stop_up().exits(0);
    let locking = lock_for(&world, 20);
    world.doctor_says(1, &["holm.db is whole", "(python3) keeps the database locked", "end that program"]);
    world.holm(["up", "--private"]).exits(1).complains_of(&["holm.db", "locked", "another program"]);
    locking.wait().succeeds();
    let locking = lock_for(&world, 3);
    world.start_up();
    locking.wait().succeeds();
    assert_eq!(world.logs(&run).text(), "kept\n");
}

/// Nothing stops in order, and what was stored last lies beside the file, in its log.
fn killed(world: &mut World) -> PathBuf {
    world.kill_up();
    world.home().join("server/holm.db-wal")
}

fn stopped(world: &mut World) -> PathBuf {
    world.stop_up().exits(0);
    gathered(world)
}

/// How a server ends, and which of its files is damaged then.
type End = fn(&mut World) -> PathBuf;
/// What is done to it.
type Harm = fn(&mut Vec<u8>);

/// What is said of each.
const HARMS: [(End, Harm, &str); 5] = [
    (stopped, |file| file[..4_096].fill(0x55), "is not a database"),
    (stopped, |file| file.truncate(4_096), "malformed"),
    (stopped, |file| file.clear(), "is empty"),
    (killed, |log| flip(log, 3), "holm.db-wal` is broken at byte"),
    (killed, |log| flip(log, usize::MAX), "holm.db-wal` is broken at byte 0"),
];

/// Makes 4,000 bytes others, after a part of those that there are.
fn flip(bytes: &mut [u8], part: usize) {
    let begin = bytes.len() / part;
    bytes[begin..begin + 4_000].iter_mut().for_each(|byte| *byte ^= 0x55);
}

#[test]
fn a_sqlite_file_that_is_damaged_is_named_with_the_way_out_and_left_as_it_is() {
    for (end, harm, words) in HARMS {
        let mut world = World::on_file();
        world.start_up();
        for _ in 0..3 {
            world.run(["--", "echo", "kept"]).succeeds();
        }
        let path = end(&mut world);
        let whole = fs::read(&path).expect("a database");
        let mut harmed = whole.clone();
        harm(&mut harmed);
        fs::write(&path, &harmed).expect("a database");
        let way_out = "restore it from a copy";
        world.holm(["up", "--private"]).exits(1).complains_of(&["holm.db", words, way_out]);
        world.run(["--", "true"]).exits(125).complains_of(&["holm.db", words, way_out]);
        world.doctor_says(1, &[words, way_out]);
        assert!(fs::read(&path).expect("a database") == harmed, "it was changed");
        fs::write(&path, whole).expect("a copy");
        world.start_up();
        let runs = world.all_runs();
        assert_eq!(runs.len(), 3, "{runs:?}");
        for run in runs {
            assert_eq!((&run["state"], &run["attempt"]), (&"ended".into(), &1.into()), "{run}");
        }
        assert_eq!(world.logs(&world.newest()).text(), "kept\n");
    }
}

#[test]
fn a_log_of_sqlite_whose_database_is_gone_is_refused_and_left_as_it_is() {
    let mut world = World::on_file();
    world.start_up();
    world.run(["--", "echo", "kept"]).succeeds();
    let (path, log) = (file(&world), killed(&mut world));
    let (aside, newest) = (path.with_extension("aside"), fs::read(&log).expect("a log"));
    fs::rename(&path, &aside).expect("moved");
    let (words, way_out) = ("holm.db-wal` is not", "restore both from a copy");
    world.holm(["up", "--private"]).exits(1).complains_of(&["holm.db", words, way_out]);
    world.doctor_says(1, &[words, way_out]);
    assert!(!path.exists() && fs::read(&log).expect("a log") == newest, "it was touched");
    fs::rename(&aside, &path).expect("moved back");
    world.start_up();
    assert_eq!(world.logs(&world.newest()).text(), "kept\n");
}

/// In a young home all but the head of the file is in its log.
#[test]
fn a_database_whose_log_was_removed_is_refused_and_left_as_it_is() {
    let mut world = World::on_file();
    world.start_up();
    world.run(["--", "echo", "kept"]).succeeds();
    let (path, log) = (file(&world), killed(&mut world));
    let (whole, newest) = (fs::read(&path).expect("a database"), fs::read(&log).expect("a log"));
    let remove = || {
        for file in [&log, &path.with_extension("db-shm")] {
            if file.exists() {
                fs::remove_file(file).expect("removed");
            }
        }
    };
    remove();
    let (words, way_out) = ("holm.db-wal` was removed", "restore it from a copy");
    world.holm(["up", "--private"]).exits(1).complains_of(&["holm.db", words, way_out]);
    world.doctor_says(1, &[words, way_out]);
    assert!(fs::read(&path).expect("a database") == whole, "it was changed");
    remove();
    fs::write(&log, newest).expect("put back");
    world.start_up();
    assert_eq!(world.logs(&world.newest()).text(), "kept\n");
}

#[test]
fn a_log_that_is_removed_under_a_live_server_is_told_and_costs_no_run() {
    let mut world = World::on_file();
    world.start_up();
    world.run(["--", "echo", "kept"]).succeeds();
    let run = world.newest();
    for beside in ["db-wal", "db-shm"] {
        fs::remove_file(file(&world).with_extension(beside)).expect("removed");
    }
    let spec = serde_json::json!({ "spec": { "root": { "kind": "host" }, "argv": ["true"] } });
    let refused = world.http().post("/v1/runs", &spec).is_problem(503, "unavailable");
    assert!(refused.to_string().contains("holm.db-wal of the database was removed"), "{refused}");
    assert_eq!(world.logs(&run).text(), "kept\n", "what the server knows is read");
    for _ in 0..2 {
        world.doctor_says(1, &["holm.db-wal was removed or replaced under a live server", "end the server in order"]);
    }
    world.stop_up().exits(0);
    world.start_up();
    assert_eq!(world.logs(&run).text(), "kept\n");
    assert_eq!(world.run(["--", "echo", "new"]).succeeds().text(), "new\n");
}

#[test]
fn a_database_that_is_removed_under_a_live_server_is_told_and_not_begun_anew() {
    let mut world = World::on_file();
    world.start_up();
    world.run(["--", "echo", "kept"]).succeeds();
    let (path, aside) = (file(&world), world.dir().join("aside"));
    fs::rename(&path, &aside).expect("moved");
    let spec = serde_json::json!({ "spec": { "root": { "kind": "host" }, "argv": ["true"] } });
    let refused = world.http().post("/v1/runs", &spec).is_problem(503, "unavailable");
    assert!(refused.to_string().contains("holm.db of the database was removed"), "{refused}");
    world.stop_up().exits(1).complains_of(&["holm.db` was removed", "put it back"]);
    world.holm(["up", "--private"]).exits(1).complains_of(&["it is gone or empty", "restore both from a copy"]);
    fs::rename(&aside, &path).expect("moved back");
    world.start_up();
    assert_eq!(world.logs(&world.newest()).text(), "kept\n");
}

#[test]
fn a_file_whose_server_ended_in_order_holds_all_by_itself() {
    for down in [&["down"][..], &["down", "--leave"]] {
        let world = World::on_file();
        world.run(["--", "echo", "kept"]).succeeds();
        world.holm(down).succeeds();
        let path = file(&world);
        assert!(!path.with_extension("db-wal").exists(), "all is in the file");
        let copy = World::on_file();
        fs::create_dir_all(copy.home().join("server")).expect("a folder");
        fs::copy(&path, file(&copy)).expect("a copy");
        assert_eq!(asked(&copy, "select count(*) from runs where state = 'ended'"), "1");
    }
}

/// The server that has it open knows what the log holds, and goes on; doctor says what a restart would meet.
#[test]
fn a_log_of_sqlite_that_is_damaged_under_a_live_server_is_told() {
    let mut world = World::on_file();
    world.start_up();
    world.run(["--", "echo", "kept"]).succeeds();
    world.doctor_says(0, &["holm.db is whole"]);
    let path = world.home().join("server/holm.db-wal");
    let mut log = fs::read(&path).expect("a log");
    // Its head alone, which is read by nobody who has the file open.
    log[12..16].fill(0x55);
    let file = fs::OpenOptions::new().write(true).open(&path).expect("a log");
    std::os::unix::fs::FileExt::write_all_at(&file, &log[..32], 0).expect("its head");
    world.doctor_says(1, &["holm.db-wal` is broken at byte 0", "restore it from a copy"]);
    assert_eq!(world.logs(&world.newest()).text(), "kept\n");
    world.kill_up();
    world.holm(["up", "--private"]).exits(1).complains_of(&["is broken at byte 0"]);
}

/// Executes a statement on the file of a database beside the server that has it open; what it returns.
fn asked(world: &World, statement: &str) -> String {
    let script = "import sqlite3, sys\nfile = sqlite3.connect(sys.argv[1], timeout=30)\n\
                  rows = file.execute(sys.argv[2]).fetchall()\nfile.commit()\nprint(*[row[0] for row in rows])\n";
    let mut python = std::process::Command::new("python3");
    ran::run(python.args(["-c", script]).arg(file(world)).arg(statement)).succeeds().word()
}

/// Leases that are short enough to be waited for.
const SHORT_LEASES: [&str; 4] = ["--lease-ttl", "3s", "--lease-margin", "1s"];
/// Lives until it is told to end, and shows that it does.
const LIVES: &str = r#"
import os, sys, time
while not os.path.exists("/seen/enough"):
    open(f"/seen/{sys.argv[1]}", "w").close()
    time.sleep(0.02)
"#;

/// One agent holds two runs and waits for two more; of both pairs one is damaged, and mended at the end, by `asked`.
fn a_damaged_row_harms_one_run(world: &mut World, asked: impl Fn(&World, &str) -> String) {
    world.start_server_with(&SHORT_LEASES);
    world.start_agent("only");
    let seen = world.folder("seen");
    let mount = format!("{}:/seen", seen.display());
    let lives = |world: &World, name: &str| {
        let run = world.detach(["--mount", &mount, "--", "/usr/bin/python3", "-c", LIVES, name]);
        world.until_state(&run, "running");
        eventually("it lives", || seen.join(name).exists().then_some(run.clone()))
    };
    let (good, held) = (lives(world, "good"), lives(world, "held"));
    world.holm(["hosts", "cordon", "only"]).succeeds();
    let (waiting, last) = (world.detach(["--", "true"]), world.detach(["--", "true"]));
    // Whoever read the row before saves nothing over it: the version is another one.
    let (harm, mend) =
        ("body = 'x' || body, version = version + 1000", "body = substr(body, 2), version = version - 1000");
    let change = |run: &String, how: &str| {
        assert_eq!(&asked(world, &format!("update runs set {how} where id = '{run}' returning id")), run);
    };
    for run in [&held, &waiting] {
        change(run, harm);
    }
    world.holm(["hosts", "uncordon", "only"]).succeeds();
    assert_eq!(world.until_ended(&last)["outcome"]["kind"], "succeeded", "it was not held up");
    let beats = |name: &str| {
        let path = seen.join(name);
        if path.exists() {
            fs::remove_file(&path).expect("a file");
        }
        std::thread::sleep(Duration::from_millis(500));
        path.exists()
    };
    eventually("the deadline of the damaged one ends it", || (!beats("held")).then_some(()));
    assert!(beats("good"), "the lease beside it was renewed");
    world.doctor_says(0, &["2 of the 3 that have not ended cannot be read", &held, &waiting, "restore the database"]);
    fs::write(seen.join("enough"), "").expect("a file");
    let ended = world.until_ended(&good);
    assert_eq!((&ended["outcome"]["kind"], &ended["attempt"]), (&"succeeded".into(), &1.into()), "{ended}");
    for damaged in [&held, &waiting] {
        world.http().get(&format!("/v1/runs/{damaged}")).is_problem(500, "internal");
        world.holm(["show", damaged]).exits(1).complains_of(&["under the number of the request (internal, request "]);
        world.holm(["rm", damaged]).exits(1).complains_of(&["cannot be read; repair its row or restore the database"]);
    }
    let listed = world.holm(["ps", "-a", "-q"]).succeeds().complains_of(&["2 runs cannot be read", &held, &waiting]);
    assert_eq!(listed.text().lines().collect::<Vec<_>>(), [&last, &good]);
    let metrics = world.http().get("/metrics").is(200);
    let counted = String::from_utf8_lossy(&metrics.body).contains("holm_unreadable_runs_total 0");
    assert!(!counted, "they were met");
    for run in [&held, &waiting] {
        change(run, mend);
    }
    let attempts = [&held, &waiting].map(|run| {
        let ended = world.until_ended(run);
        assert_eq!(ended["outcome"]["kind"], "succeeded", "{ended}");
        ended["attempt"].as_u64()
    });
    assert_eq!(attempts, [Some(2), Some(1)], "what was lost with the lease is made anew");
}

#[test]
fn a_damaged_row_of_a_run_on_sqlite_harms_no_other_run() {
    a_damaged_row_harms_one_run(&mut World::on_file(), asked);
}

#[test]
fn a_damaged_row_of_a_run_on_postgres_harms_no_other_run() {
    let postgres = Postgres::start();
    let mut world = World::on_database(&postgres.url(postgres.port()));
    a_damaged_row_harms_one_run(&mut world, |_, statement| postgres.asked(statement));
}

#[test]
fn doctor_explains_what_the_server_stands_on() {
    let mut world = World::on_file();
    world.start_up();
    world.doctor_says(
        0,
        &[
            "holm.db is whole",
            "the 0 that have not ended can be read",
            "blobs",
            "set aside",
            "the server's agrees with this machine's",
        ],
    );
    world.doctor_says(0, &["at work", "1 of 1 take runs", "both ends of the newest 0 can be read"]);
    world.stop_up().exits(0);
    let blobs = world.home().join("server/blobs");
    fs::rename(&blobs, world.home().join("server/away")).expect("a folder");
    fs::write(&blobs, "").expect("a file");
    world.doctor_says(1, &["blobs", "not a folder"]);
    fs::remove_file(&blobs).expect("a file");
    fs::rename(world.home().join("server/away"), &blobs).expect("a folder");
    if !host::is_root() {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&blobs, fs::Permissions::from_mode(0o500)).expect("a mode");
        world.doctor_says(1, &["blobs", "cannot be written"]);
        fs::set_permissions(&blobs, fs::Permissions::from_mode(0o700)).expect("a mode");
    }
    let aside = world.home().join("agent/set-aside/run_0.1.0");
    fs::create_dir_all(&aside).expect("a folder");
    fs::write(aside.join("damaged"), "shim.json: torn\n").expect("a file");
    world.doctor_says(0, &["set aside", "run_0.1.0", "shim.json: torn"]);
    fs::remove_dir_all(aside).expect("a folder");
}

#[test]
fn a_folder_of_objects_that_is_away_for_a_while_costs_no_line_and_no_run() {
    let world = World::up();
    let (blobs, away) = (world.home().join("server/blobs"), world.home().join("server/away"));
    let before = world.detach(noise::command(5_000));
    world.until_ended(&before);
    eventually("its log is sealed", || Some(objects(&world, &before)).filter(|found| !found.is_empty()));
    fs::rename(&blobs, &away).expect("a folder");
    fs::write(&blobs, "").expect("a file");
    let run = world.detach(noise::command(60_000));
    eventually("its output is refused", || world.up_complains().contains("store a blob").then_some(()));
    assert_eq!(world.run(["--", "echo", "short"]).succeeds().text(), "short\n", "what needs no object goes on");
    assert_ne!(world.show(&run)["state"], "ended", "its output is not stored");
    world.http().get(&format!("/v1/runs/{before}/logs")).is_problem(503, "unavailable");
    let reading = Running::start(world.command().args(["logs", &before]));
    eventually("it says why it waits", || reading.stderr().contains("trying again").then_some(()));
    fs::remove_file(&blobs).expect("a file");
    fs::rename(&away, &blobs).expect("a folder");
    assert_eq!(world.until_ended(&run)["outcome"]["kind"], "succeeded");
    let read = reading.wait().succeeds();
    assert_eq!(read.complaint().matches("trying again").count(), 1, "{read}");
    for (log, lines) in [(world.logs(&run), 60_000), (world.logs(&before), 5_000), (read, 5_000)] {
        assert!(noise::is_whole(log.text(), lines), "lines are missing, doubled or out of order");
    }
}

/// The objects of the log of a run.
fn objects(world: &World, run: &str) -> Vec<PathBuf> {
    let orgs = fs::read_dir(world.home().join("server/blobs/orgs")).into_iter().flatten().flatten();
    let logs = orgs.map(|org| org.path().join("runs").join(run).join("logs"));
    let files = logs.flat_map(|logs| fs::read_dir(logs).into_iter().flatten().flatten());
    files.map(|file| file.path()).collect()
}

#[test]
fn a_log_whose_object_is_damaged_or_gone_says_so_and_other_logs_go_on() {
    let world = World::up();
    let long = |lines| {
        world.run(noise::command(lines)).succeeds();
        world.newest()
    };
    let (whole, damaged, gone) = (long(5_000), long(5_001), long(5_002));
    let of_damaged = eventually("they are sealed", || {
        let sealed = [&whole, &damaged, &gone].iter().all(|run| !objects(&world, run).is_empty());
        sealed.then(|| objects(&world, &damaged))
    });
    for path in of_damaged {
        let mut bytes = fs::read(&path).expect("an object");
        bytes.iter_mut().skip(100).step_by(200).for_each(|byte| *byte ^= 0x55);
        fs::write(path, bytes).expect("an object");
    }
    objects(&world, &gone).into_iter().for_each(|path| fs::remove_file(path).expect("an object"));
    world.doctor_says(0, &["2 of the newest 3 cannot be read", &gone, "restore the folder of blobs"]);
    for run in [&damaged, &gone] {
        world.holm(["logs", run]).exits(1).complains_of(&["(log_damaged, request "]);
        // What lies in rows before them is read.
        for query in ["/search?text=nowhere", "/range?tail=6000"] {
            world.http().get(&format!("/v1/runs/{run}/logs{query}")).is_problem(500, "log_damaged");
        }
        assert_eq!(world.show(run)["outcome"]["kind"], "succeeded");
    }
    assert!(world.holm(["logs", "-n", "1", &whole]).succeeds().text().starts_with("5000 "));
    assert_eq!(world.run(["--", "echo", "new"]).succeeds().text(), "new\n");
}

#[test]
fn a_log_whose_end_is_gone_is_shown_up_to_there_and_said_to_be_damaged() {
    let mut world = World::on_file();
    world.start_up();
    // More than one segment holds.
    let lines = 60_000;
    world.run(noise::command(lines)).succeeds();
    let run = world.newest();
    let of_run = format!("delete from log_segments where run = '{run}'");
    let last = "and last_seq = (select max(last_seq) from log_segments)";
    assert_ne!(asked(&world, &format!("{of_run} {last} returning last_seq")), "");
    world.doctor_says(0, &["1 of the newest 1 cannot be read", &run]);
    let whole = noise::written(&noise::program(1, lines));
    for all in [&["logs", &run][..], &["logs", "-f", &run]] {
        let shown = world.holm(all).exits(1).complains_of(&["log_damaged"]).text().to_owned();
        assert!(!shown.is_empty() && shown.len() < whole.len() && whole.starts_with(&shown), "what is there");
    }
    let beyond = ["logs", "--since", "2100-01-01T00:00:00Z", &run];
    for part in [&["logs", "--tail", "2", &run][..], &["logs", "--search", "59999 ", &run], &beyond] {
        world.holm(part).exits(1).complains_of(&["log_damaged"]);
    }
    asked(&world, &format!("{of_run} returning last_seq"));
    assert_eq!(world.holm(["logs", &run]).exits(1).complains_of(&["log_damaged"]).text(), "");
}

#[test]
fn a_log_with_a_gap_is_shown_up_to_it_and_from_behind_it() {
    let mut world = World::on_file();
    world.start_up();
    // More than two segments hold.
    let lines = 60_000;
    world.run(noise::command(lines)).succeeds();
    let run = world.newest();
    let of_run = format!("from log_segments where run = '{run}'");
    let second = format!("(select last_seq {of_run} order by last_seq limit 1 offset 1)");
    let last_gone = asked(&world, &format!("delete {of_run} and last_seq = {second} returning last_seq"));
    let whole = noise::written(&noise::program(1, lines));
    let before = world.holm(["logs", &run]).exits(1).complains_of(&["log_damaged"]).text().to_owned();
    assert!(!before.is_empty() && whole.starts_with(&before), "what lies before it");
    let behind = world.holm(["logs", "--after", &last_gone, &run]).succeeds().text().to_owned();
    assert!(!behind.is_empty() && whole.ends_with(&behind), "what lies behind it");
    assert!(before.len() + behind.len() < whole.len());
}
