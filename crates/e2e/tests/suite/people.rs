//! What only people see: progress on a terminal, and nothing of it anywhere else.

use holm_e2e::{OnTerminal, World, eventually, host, terminal::screen};

const QUEUED: &str = "queued: no host has registered; start `holm agent` on one";

#[test]
fn a_run_that_waits_says_why_on_a_terminal_and_nowhere_else() {
    let mut world = World::with_short_leases();
    let on_terminal = |flags: &[&str]| {
        let mut command = world.command();
        OnTerminal::start(
            command.env("TERM", "xterm").env("NO_COLOR", "1").arg("run").args(flags).args(["--", "echo", "hi"]),
        )
    };
    // Those that stay quiet begin first: when the last one has said something, they could have, too.
    let mut in_pipes = world.command();
    in_pipes.env("TERM", "xterm").args(["run", "--", "echo", "hi"]);
    let in_pipes = holm_e2e::Running::start(&mut in_pipes);
    let quiet = on_terminal(&["--quiet"]);
    let json = on_terminal(&["--json"]);
    let shown = on_terminal(&[]);
    shown.says(&format!("holm: {QUEUED}"));
    let newest = world.newest();
    let waits = world.holm(["show", &newest]).succeeds();
    assert!(waits.text().contains("no host has registered"), "{waits}");

    world.start_agent("a");
    let (got, code) = shown.wait();
    assert_eq!((code, screen(&got).lines().next()), (0, Some("hi")), "{got:?}");
    assert!(!screen(&got).contains("queued"), "it is erased: {got:?}");
    let ran = in_pipes.wait().succeeds();
    assert_eq!(ran.text(), "hi\n");
    assert!(!ran.complaint().contains("queued") && !ran.complaint().contains('\x1b'), "{ran}");
    for (got, code) in [quiet.wait(), json.wait()] {
        assert_eq!(code, 0, "{got:?}");
        assert!(!got.contains("no host") && !got.contains('\x1b'), "{got:?}");
    }
}

#[test]
fn top_shows_what_goes_on_until_it_is_left() {
    let world = World::up();
    let run = world.detach(["--cpus", "0.5", "--memory", "256m", "--", "sleep", "600"]);
    world.until_state(&run, "running");
    let top = || {
        let mut command = world.command();
        OnTerminal::start(command.env("TERM", "xterm").env("NO_COLOR", "1").args(["top", "--interval", "200ms"]))
    };
    let mut with_keys = top();
    with_keys.says(&run);
    with_keys.types("xq");
    let with_signal = top();
    with_signal.says("256 MiB");
    with_signal.signal(rustix::process::Signal::INT);
    for (got, code) in [with_keys.wait(), with_signal.wait()] {
        assert_eq!(code, 0, "{got:?}");
        assert!(got.starts_with("\x1b[?1049h") && got.ends_with("\x1b[?1049l"), "the screen is given back: {got:?}");
    }
    // Another run comes up while it is watched.
    let mut watched = top();
    watched.says(&run);
    let second = world.detach(["--", "sleep", "600"]);
    watched.says(&second);
    watched.types("q");
    assert_eq!(watched.wait().1, 0);

    let once = world.holm(["top"]).succeeds();
    assert!(once.text().contains(&run) && once.text().contains("running") && !once.text().contains('\x1b'), "{once}");
    let json: serde_json::Value = serde_json::from_str(world.holm(["top", "--json"]).succeeds().text()).expect("JSON");
    assert_eq!((json["runs"].as_array().map(Vec::len), json["hosts"].as_array().map(Vec::len)), (Some(2), Some(1)));
}

#[test]
fn what_runs_use_now_is_shown_where_their_host_counts_it() {
    let mut world = World::with_short_leases();
    world.start_agent("a");
    let script = "b=$(head -c 20m /dev/zero | tr '\\0' x); while :; do :; done; echo $b";
    let run = world.detach(["--cpus", "0.5", "--memory", "256m", "--", "sh", "-c", script]);
    world.until_state(&run, "running");
    let look = || {
        let top: serde_json::Value =
            serde_json::from_str(world.holm(["top", "--json"]).succeeds().text()).expect("JSON");
        top["runs"][0].clone()
    };
    let is_renewed = || world.show(&run)["live"]["at"].as_i64();
    if !host::is_root() {
        std::thread::sleep(std::time::Duration::from_secs(3));
        assert_eq!((look()["state"].as_str(), is_renewed()), (Some("running"), None), "nothing is made up");
        let top = world.holm(["top"]).succeeds();
        assert!(top.text().contains("- of 256 MiB"), "{top}");
        return;
    }
    // Its share of a processor depends on what else this machine does, but is limited.
    let live = eventually("a busy run", || {
        let live = look()["live"].clone();
        let is_busy = live["cpus_milli"].as_u64()? > 50 && live["memory_bytes"].as_u64()? > 20 << 20;
        is_busy.then_some(live)
    });
    assert!(live["cpus_milli"].as_u64() < Some(800), "{live}");
    assert!(live["memory_peak_bytes"].as_u64() >= live["memory_bytes"].as_u64(), "{live}");
    assert!((2..20).contains(&live["pids"].as_u64().expect("a count")), "{live}");
    let first = is_renewed();
    eventually("a later measurement", || (is_renewed() > first).then_some(()));
    let top = world.holm(["top"]).succeeds();
    assert!(top.text().contains("MiB of 256 MiB") && top.text().contains(" % "), "{top}");
    let shown = world.holm(["show", &run]).succeeds();
    assert!(shown.text().contains("uses") && shown.text().contains("at most so far"), "{shown}");
    world.holm(["cancel", "--kill", &run]).succeeds();
    let ended = world.until_ended(&run);
    assert_eq!(ended["live"], serde_json::Value::Null, "{ended}");
}

#[test]
fn a_run_that_no_host_has_room_for_says_so_and_is_cancelled_cleanly() {
    let mut world = World::with_short_leases();
    world.start_agent("a");
    let mut command = world.command();
    command.env("TERM", "xterm").env("NO_COLOR", "1").args(["run", "--runtime", "vm", "true"]);
    let waiting = OnTerminal::start(&mut command);
    waiting.says("queued: no connected host has `vm` with root.host");
    waiting.signal(rustix::process::Signal::INT);
    let (got, code) = waiting.wait();
    assert_eq!(code, 130, "{got:?}");
    let screen = screen(&got);
    assert!(!screen.contains("queued: ") && screen.starts_with("holm: cancelling run "), "{screen}");
}
