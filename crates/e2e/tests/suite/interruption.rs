//! Ctrl-C and `holm cancel`.

use holm_e2e::{Running, World, eventually, host, unique};
use rustix::process::Signal;

#[test]
fn one_ctrl_c_asks_the_command_to_end() {
    let world = World::up();
    let mut running =
        world.running(["--", "sh", "-c", "trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 0.1; done"]);
    running.says("ready");
    running.signal(Signal::INT);
    running.says("asked");
    let ran = running.wait();
    let view = world.show(&world.newest());
    assert_eq!(view["outcome"]["kind"], "cancelled", "{view}");
    assert_eq!(view["cancel"], "terminate", "{view}");
    assert_eq!(ran.code, 130, "cancelled, whatever the command answered: {ran}");
    let listed = world.holm(["ps", "--all"]).succeeds();
    assert!(listed.text().contains("cancelled (130)"), "the same everywhere: {listed}");
    assert_eq!(ran.text(), "ready\nasked\n");
}

#[test]
fn the_second_ctrl_c_kills_what_does_not_listen() {
    let world = World::up();
    let word = unique("86398");
    let script = format!("trap '' TERM INT; echo ready; exec -a {word} sleep 86398");
    let mut running = world.running(["--", "bash", "-c", &script]);
    running.says("ready");
    running.signal(Signal::INT);
    let id = world.newest();
    eventually("the end was asked for", || (world.show(&id)["cancel"] == "terminate").then_some(()));
    assert_eq!(world.show(&id)["state"], "running", "it ignores what it is asked");
    running.signal(Signal::INT);
    let ran = running.wait();
    assert_ne!(ran.code, 0, "{ran}");
    let view = world.show(&id);
    assert_eq!((&view["cancel"], &view["outcome"]["kind"]), (&"kill".into(), &"cancelled".into()), "{view}");
    eventually("it is dead", || host::find(&word).is_empty().then_some(()));
}

#[test]
fn cancel_ends_a_detached_run() {
    let world = World::up();
    let id = world.detach(["--", "sleep", "600"]);
    world.until_state(&id, "running");
    world.holm(["cancel", &id]).succeeds();
    let view = world.until_ended(&id);
    assert_eq!(view["outcome"]["kind"], "cancelled", "{view}");
    // Asking again, also when it is over, is harmless.
    world.holm(["cancel", &id]).succeeds();
    assert_eq!(world.show(&id), view);
}

#[test]
fn a_run_in_the_queue_is_cancelled_at_once() {
    let world = World::with_short_leases();
    let id = world.detach(["--", "true"]);
    assert_eq!(world.show(&id)["state"], "queued", "there is no agent");
    world.holm(["cancel", &id]).succeeds();
    let view = world.show(&id);
    assert_eq!((&view["state"], &view["outcome"]["kind"]), (&"ended".into(), &"cancelled".into()), "{view}");
    assert_eq!(view["attempt"], 0, "{view}");
}

#[test]
fn a_client_that_goes_away_leaves_the_run_alone() {
    let world = World::up();
    let mut running = world.running(["--", "sh", "-c", "echo ready; sleep 1; echo done"]);
    running.says("ready");
    running.signal(Signal::KILL);
    let id = world.newest();
    assert_eq!(world.until_ended(&id)["outcome"]["kind"], "succeeded");
    assert_eq!(world.logs(&id).text(), "ready\ndone\n");
}

#[test]
fn a_reader_that_goes_away_ends_the_run() {
    let world = World::up();
    let mut command = world.command();
    command.args(["run", "--", "yes"]).stdout(std::process::Stdio::piped());
    let mut holm = command.spawn().expect("holm");
    let mut first = [0; 2];
    let mut output = holm.stdout.take().expect("a pipe");
    std::io::Read::read_exact(&mut output, &mut first).expect("a line");
    assert_eq!(&first, b"y\n");
    drop(output);
    let status = eventually("it ends", || holm.try_wait().expect("its status"));
    assert_eq!(status.code(), Some(141), "as SIGPIPE would end it");
    assert_eq!(world.until_ended(&world.newest())["outcome"]["kind"], "cancelled");
}

/// `holm run ARGUMENTS…` whose terminal is a new one; the other end of that.
fn in_a_terminal(world: &World, arguments: &[&str]) -> (Running, std::fs::File) {
    use rustix::pty;
    let master = pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY).expect("a terminal");
    pty::grantpt(&master).expect("a terminal");
    pty::unlockpt(&master).expect("a terminal");
    let name = pty::ptsname(&master, Vec::new()).expect("its name");
    let terminal = std::fs::File::options().read(true).write(true).open(name.to_str().expect("a path")).expect("it");
    let holm = world.command();
    let mut command = std::process::Command::new("setsid");
    command.arg("--ctty").arg(holm.get_program()).arg("run").args(arguments).env_clear();
    command.envs(holm.get_envs().filter_map(|(name, value)| Some((name, value?))));
    (Running::start_on(&mut command, terminal), std::fs::File::from(master))
}

/// What the terminal does when somebody types Ctrl-C.
fn type_ctrl_c(mut terminal: &std::fs::File) {
    std::io::Write::write_all(&mut terminal, b"\x03").expect("a terminal");
}

#[test]
fn ctrl_c_at_a_terminal_asks_the_command_to_end() {
    let world = World::up();
    let script = "trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let (mut running, terminal) = in_a_terminal(&world, &["--", "sh", "-c", script]);
    running.says("ready");
    type_ctrl_c(&terminal);
    running.says("asked");
    let ran = running.wait().exits(130);
    assert_eq!(ran.text(), "ready\nasked\n");
    assert_eq!(world.show(&world.newest())["cancel"], "terminate");
}

#[test]
fn ctrl_c_at_a_terminal_while_the_server_is_being_started_ends_the_run_and_leaves_the_server() {
    let world = World::new();
    let (running, terminal) = in_a_terminal(&world, &["--", "sleep", "86391"]);
    eventually("the server is being started", || world.home().join("up.lock").exists().then_some(()));
    type_ctrl_c(&terminal);
    running.wait().exits(130);
    // The server is nobody's child at that terminal: it goes on, and nothing of the run does.
    let all = world.holm(["ps", "--all", "--json"]).succeeds().json();
    for run in all.as_array().into_iter().flatten() {
        let ended = world.until_ended(run["id"].as_str().expect("an id"));
        assert_eq!(ended["outcome"]["kind"], "cancelled", "{ended}");
    }
    world.holm(["down"]).succeeds();
    assert_eq!(world.marks().find(), Vec::<String>::new());
}
