//! `holm up`, the server that `holm run` starts by itself, and `holm down`.

use holm_e2e::{World, eventually, host};

/// The first command of the README on a machine on which nothing was set up.
#[test]
fn the_first_command_needs_nothing() {
    let world = World::new();
    let ran = world.run(["--", "echo", "hello"]).succeeds();
    assert_eq!(ran.text(), "hello\n");
    // What was beside the sandbox may take a moment longer than the command.
    let alone = || Some(world.marks().processes()).filter(|left| left.len() == 1);
    let server = eventually("the server alone goes on for the next command", alone);
    assert_eq!(world.run(["--", "echo", "again"]).succeeds().text(), "again\n");
    assert_eq!(eventually("it goes on", alone), server, "the second command used the same server");
    world.holm(["down"]).succeeds();
    eventually("the server has ended", || world.marks().processes().is_empty().then_some(()));
}

#[test]
fn a_server_whose_socket_is_removed_ends_and_the_next_one_takes_up_what_runs() {
    let mut world = World::up();
    let run = world.detach(["--", "sleep", "600"]);
    world.until_state(&run, "running");
    std::fs::remove_file(world.home().join("up.sock")).expect("a socket");
    eventually("the server has ended", || world.up_ended()).complains_of(&["the socket was removed or replaced"]);
    world.start_up();
    let view = world.show(&run);
    assert_eq!((view["state"].as_str(), view["fence"].as_u64()), (Some("running"), Some(1)));
    world.holm(["cancel", "--kill", &run]).succeeds();
    world.until_ended(&run);
}

#[test]
fn many_first_commands_at_once_share_one_server() {
    let world = World::new();
    let running: Vec<_> = (0..6).map(|n| world.running(["--", "echo", &n.to_string()])).collect();
    for (number, running) in running.into_iter().enumerate() {
        assert_eq!(running.wait().succeeds().text(), format!("{number}\n"));
    }
    world.holm(["down"]).succeeds();
    eventually("the server has ended", || world.marks().processes().is_empty().then_some(()));
}

#[test]
fn up_survives_a_restart_with_its_runs() {
    let mut world = World::up();
    world.run(["--", "echo", "kept"]).succeeds();
    let id = world.newest();
    world.stop_up().exits(0);
    world.start_up();
    assert_eq!(world.logs(&id).text(), "kept\n");
    assert_eq!(world.run(["--", "echo", "new"]).succeeds().text(), "new\n");
}

#[test]
fn up_ends_by_itself_once_nobody_needs_it() {
    let mut world = World::new();
    world.start_up_with(&["--idle-exit", "2s"]);
    let id = world.detach(["--", "sleep", "6"]);
    world.until_state(&id, "running");
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert!(world.up_ended().is_none(), "it went from under a run");
    eventually("it has ended", || world.up_ended()).exits(0);
    assert!(world.marks().processes().is_empty());
    world.start_up();
    assert_eq!(world.show(&id)["outcome"]["kind"], "succeeded", "the run had ended before");
}

#[test]
fn up_says_where_it_is_and_keeps_its_token_to_itself() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::up();
    let place = eventually("it says where it is", || Some(world.up_says()).filter(|said| said.lines().count() == 2));
    let home = world.home().display().to_string();
    assert_eq!(place, format!("listening on  unix:{home}/up.sock\ntoken in      {home}/token\n"));
    let token = std::fs::metadata(world.home().join("token")).expect("a token");
    assert_eq!(token.permissions().mode() & 0o777, 0o600);
    eventually("the host and its runtime are shown", || {
        let hosts = world.holm(["hosts", "--json"]).succeeds();
        hosts.text().contains("process").then_some(())
    });
    world.holm(["config", "check"]).succeeds();
    world.holm(["doctor"]).succeeds();
}

#[test]
fn down_ends_what_still_runs() {
    let world = World::new();
    let word = holm_e2e::unique("86395");
    let mut attached = world.running(["--", "bash", "-c", &format!("echo live; exec -a {word} sleep 86395")]);
    attached.says("live");
    let id = world.detach(["--", "sleep", "86395"]);
    world.until_state(&id, "running");
    world.holm(["down"]).succeeds();
    // The attached client bears the word as well, and may take a moment longer.
    let workload = |pid: &u32| holm_e2e::host::command_line(*pid).starts_with(&word);
    assert!(!holm_e2e::host::find(&word).iter().any(workload), "the workload outlived its server");
    assert_ne!(attached.wait().code, 0);
    assert!(world.marks().processes().is_empty());
    // Looking at it starts the server again.
    let shown = world.holm(["show", "--json", &id]).succeeds().json();
    assert_eq!(shown[0]["outcome"]["kind"], "cancelled", "{shown}");
    assert_eq!(shown[0]["events"].as_array().and_then(|events| events.last()).expect("events")["kind"], "ended");
    world.holm(["down"]).succeeds();
}

#[test]
fn down_without_a_server_says_so() {
    let world = World::new();
    let ran = world.holm(["down"]).exits(0);
    assert_eq!((ran.text(), ran.complaint()), ("", format!("holm: no server runs under {}\n", world.home().display())));
    assert!(world.marks().processes().is_empty());
}

#[test]
fn down_can_leave_runs_to_the_next_server() {
    let world = World::new();
    let id = world.detach(["--", "sh", "-c", "echo begun; sleep 86392"]);
    world.until_state(&id, "running");
    world.holm(["down", "--leave"]).succeeds();
    // Looking at it starts the server again, and its agent finds the run.
    let shown = world.holm(["show", "--json", &id]).succeeds().json();
    assert_eq!(shown[0]["state"], "running", "{shown}");
    world.holm(["cancel", "--kill", &id]).succeeds();
    let view = world.until_ended(&id);
    assert_eq!((&view["attempt"], &view["outcome"]["kind"]), (&1.into(), &"cancelled".into()), "{view}");
    world.holm(["down"]).succeeds();
    assert!(world.marks().processes().is_empty());
}

/// Who makes the folder first does not become the one who is served from it.
#[test]
fn a_home_of_another_user_is_refused_with_the_way_out() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let home = world.folder("home");
    let path = home.display().to_string();
    let problem = if host::is_root() {
        std::os::unix::fs::chown(&home, Some(54_322), Some(54_322)).expect("root gives folders away");
        "belongs to user 54322"
    } else {
        std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o777)).expect("a mode");
        "can be written by other users"
    };
    let listener = std::os::unix::net::UnixListener::bind(home.join("up.sock")).expect("a socket");
    listener.set_nonblocking(true).expect("a mode");
    std::fs::write(home.join("token"), "secret\n").expect("a file");
    std::fs::set_permissions(home.join("token"), std::fs::Permissions::from_mode(0o600)).expect("a mode");
    world.run(["--", "true"]).exits(125).complains_of(&[&path, problem, "HOLM_HOME"]);
    for command in [&["ps"][..], &["down"], &["up", "--private"], &["agent", "--server", "unix:/nowhere"]] {
        let ran = world.holm(command);
        assert_ne!(ran.code, 0, "{ran}");
        if command[0] != "agent" {
            ran.complains_of(&[&path, problem, "HOLM_HOME"]);
        }
    }
    assert!(listener.accept().is_err(), "nobody was told anything");
    assert!(world.marks().processes().is_empty());
}
