//! What goes wrong, and what is said about it.

use holm_e2e::{Ran, World, eventually, host, unique};

#[test]
fn a_command_that_is_not_there_is_127() {
    let world = World::up();
    world.run(["--", "no-such-command-at-all"]).exits(127).complains_of(&["no-such-command-at-all"]);
    let view = world.show(&world.newest());
    assert_eq!(view["outcome"]["reason"], "command_not_found", "{view}");
    world.run(["--", "/usr/bin/no-such-command-at-all"]).exits(127);
}

#[test]
fn a_command_that_cannot_be_executed_is_126() {
    let world = World::up();
    world.run(["--", "/etc/passwd"]).exits(126).complains_of(&["/etc/passwd"]);
    world.run(["--", "/usr"]).exits(126);
    let view = world.show(&world.newest());
    assert_eq!(view["outcome"]["reason"], "command_not_executable", "{view}");
}

#[test]
fn an_unknown_image_is_125_and_named() {
    let world = World::up();
    world.run(["--root", "ubuntu", "--", "true"]).exits(125).complains_of(&["ubuntu", "dir:"]);
    world.run(["--root", "dir:/no/such/folder", "--", "true"]).exits(125).complains_of(&["/no/such/folder"]);
    world.run(["--root", "tar:/no/such/archive", "--", "true"]).exits(125).complains_of(&["/no/such/archive"]);
}

#[test]
fn a_directory_that_cannot_be_read_is_125_and_named() {
    let world = World::up();
    world.run(["--dir", "/no/such/folder", "--", "true"]).exits(125).complains_of(&["/no/such/folder"]);
    world.run(["--mount", "/no/such/folder:/mnt", "--", "true"]).exits(125).complains_of(&["/no/such/folder"]);
    // What root cannot enter either: a file in the way, links that go round, a name that is too long, a file itself.
    let place = world.folder("place");
    std::fs::write(place.join("file"), "x").expect("a file");
    std::os::unix::fs::symlink("round", place.join("round")).expect("a link");
    for name in ["file/below", "round", "round/below", &"n".repeat(300), "file"] {
        let path = place.join(name).display().to_string();
        world.run(["--dir", &path, "--", "true"]).exits(125).complains_of(&[&path]);
    }
    if !host::is_root() {
        // Root reads every directory; for others /root is closed.
        world.run(["--dir", "/root", "--", "true"]).exits(125).complains_of(&["/root"]);
    }
}

#[test]
fn limits_that_cannot_be_are_refused_before_anything_runs() {
    let world = World::up();
    let absurd: [(&[&str], &str); 17] = [
        (&["--cpus", "0"], "cpus"),
        (&["--cpus", "-1"], "cpus"),
        (&["--cpus", "999999999999"], "cpus"),
        (&["--memory", "0"], "memory"),
        (&["--memory", "1"], "memory"),
        (&["--memory", "99999999999999999999g"], "memory"),
        (&["--memory", "lots"], "memory"),
        (&["--pids", "0"], "pids"),
        (&["--pids", "99999999999"], "pids"),
        (&["--disk", "0"], "disk"),
        (&["--disk", "1k"], "disk"),
        (&["--disk", "99999999999g"], "disk"),
        (&["--log-limit", "1"], "log-limit"),
        (&["--log-limit", "2000t"], "log-limit"),
        (&["--timeout", "0"], "timeout"),
        (&["--timeout", "soon"], "timeout"),
        (&["--timeout", "99999d"], "timeout"),
    ];
    for (flags, named) in absurd {
        let ran: Ran = world.run(flags.iter().copied().chain(["--", "echo", "must not run"]));
        assert_eq!(ran.code, 125, "{ran}");
        assert!(ran.stdout.is_empty(), "{ran}");
        ran.complains_of(&[named]);
    }
    assert!(world.all_runs().is_empty(), "nothing was taken into the queue");
}

#[test]
fn no_command_is_an_error_of_the_command_line() {
    let world = World::up();
    let ran = world.run::<&str>([]);
    assert_eq!(ran.code, 125, "{ran}");
}

#[test]
fn the_time_limit_kills_the_whole_tree_and_says_so() {
    let world = World::up();
    let word = unique("86399");
    // Children in sessions of their own, deaf to every signal that can be ignored.
    let script = format!(
        "for n in 1 2 3; do setsid bash -c 'trap \"\" TERM INT HUP; exec -a {word} sleep 86399' & done; \
         trap '' TERM; echo started; while :; do sleep 1; done"
    );
    let ran = world.run(["--timeout", "2s", "--", "bash", "-c", &script]);
    let ran = ran.exits(124).complains_of(&["2"]);
    assert_eq!(ran.text(), "started\n");
    let view = world.show(&world.newest());
    assert_eq!(view["outcome"]["kind"], "timed_out", "{view}");
    assert_eq!(view["outcome"]["reason"], "timeout", "{view}");
    eventually("the whole tree is dead", || host::find(&word).is_empty().then_some(()));
}

#[test]
fn an_unknown_user_and_a_bad_directory_are_named() {
    let world = World::up();
    world.run(["--user", "nobody-of-that-name", "--", "true"]).exits(125).complains_of(&["nobody-of-that-name"]);
    assert_eq!(world.show(&world.newest())["outcome"]["reason"], "unknown_user");
    world.run(["--workdir", "/no/such/place", "--", "true"]).exits(125).complains_of(&["/no/such/place"]);
    assert_eq!(world.show(&world.newest())["outcome"]["reason"], "bad_work_dir");
}

#[test]
fn a_run_that_is_not_there_is_named() {
    let world = World::up();
    let id = "run_00000000000000000000000000";
    for arguments in [["show", id], ["logs", id], ["cancel", id], ["rm", id]] {
        let ran = world.holm(arguments);
        assert_ne!(ran.code, 0, "{ran}");
        ran.complains_of(&[id]);
    }
    assert_ne!(world.holm(["show", "../../etc/passwd"]).code, 0);
}

#[test]
fn errors_of_the_first_hour_say_what_to_do() {
    let world = World::up();
    world.run(["--memroy", "1g", "true"]).exits(125).complains_of(&["--memroy", "holm run --help"]);
    world.run(["--dir", "/no/such/folder", "true"]).exits(125).complains_of(&["--dir takes a path of the host"]);
    world.holm(["echo", "hello"]).exits(2).complains_of(&["holm run COMMAND"]);

    let token = format!("holm_{}", "a".repeat(43));
    let elsewhere = |server: &str| {
        let mut command = world.command();
        holm_e2e::ran::run(command.env("HOLM_TOKEN", &token).args(["--server", server, "ps"])).exits(1)
    };
    elsewhere("unix:/no/such/socket").complains_of(&["unix:/no/such/socket", "holm up"]);
    elsewhere(&format!("unix:{}", world.home().join("up.sock").display())).complains_of(&["holm login"]);

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let mut command = world.command();
    let other = world.folder("other");
    // On PostgreSQL it is another server on one database, and these share a root key.
    command.env("HOLM_HOME", &other).env("HOLM_ROOT_KEY_FILE", world.home().join("root-key"));
    let up = command.args(["up", "--listen", &address]);
    holm_e2e::ran::run(up).exits(1).complains_of(&[&address, "another --listen"]);

    let mut command = world.command();
    let below_a_file = command.env("HOLM_HOME", "/etc/passwd/x").args(["run", "true"]);
    holm_e2e::ran::run(below_a_file).exits(125).complains_of(&["/etc/passwd/x", "--home"]);
}
