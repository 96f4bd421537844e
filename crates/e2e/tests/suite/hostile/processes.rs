//! Processes: too many, ones that will not die, ones that nobody waits for.

use holm_e2e::{World, eventually, host, unique};

use super::{ended_as, enforces, lives_on, python};

#[test]
fn a_fork_bomb_ends_with_its_limit() {
    let world = World::up();
    if enforces(&world, "pids") {
        let ran = python(&world, &["--pids", "64"], "import os\nwhile True: os.fork()").exits(1);
        ran.complains_of(&["as many processes as it may", "--pids (it had 64)"]);
        let ended = ended_as(&world, "pids_limit");
        assert!(ended.used("pids_peak").is_some_and(|peak| (60..=80).contains(&peak)), "{}", ended.view);
    }
    lives_on(&world);
}

#[test]
fn a_fork_bomb_that_goes_on_ends_with_its_time() {
    let world = World::up();
    if enforces(&world, "pids") {
        let bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass";
        let ran = python(&world, &["--pids", "64", "--timeout", "2s"], bomb).exits(124);
        ran.complains_of(&["time limit of 2s", "as many processes as it may"]);
        ended_as(&world, "timeout");
    }
    lives_on(&world);
}

#[test]
fn what_gets_along_with_fewer_processes_has_succeeded() {
    let world = World::up();
    let careful = "import os, time\nmade = 0\ntry:\n    while made < 60:\n        if os.fork() == 0:\n            \
                   time.sleep(600)\n        made += 1\nexcept OSError: pass\nprint('made some')";
    python(&world, &["--pids", "40"], careful).succeeds();
    ended_as_success(&world);
    lives_on(&world);
}

#[track_caller]
fn ended_as_success(world: &World) {
    let view = world.until_ended(&world.newest());
    assert_eq!((&view["outcome"]["kind"], &view["outcome"]["reason"]), (&"succeeded".into(), &().into()), "{view}");
}

#[test]
fn a_zombie_farm_is_limited_and_orphans_are_reaped() {
    let world = World::up();
    if enforces(&world, "pids") {
        // Children that have ended and are not waited for count as processes.
        let farm = "import os\nwhile True:\n    if os.fork() == 0: os._exit(0)";
        python(&world, &["--pids", "64"], farm).exits(1);
        ended_as(&world, "pids_limit");
    }
    // Those whose parents have gone are nobody's to wait for: ten times as many as there may be at once.
    let orphans = "import os, time\nfor n in range(640):\n    if os.fork() == 0:\n        if os.fork() == 0: os._exit(0)\n        \
                   os._exit(0)\n    os.wait()\n    if n % 16 == 0: time.sleep(0.01)\nprint('all gone')";
    assert_eq!(python(&world, &["--pids", "64"], orphans).succeeds().text(), "all gone\n");
    lives_on(&world);
}

/// Twenty daemons, twice forked, in sessions of their own, deaf to signals, with standard output open.
fn daemons(word: &str, last: &str) -> String {
    format!(
        "import os, signal, sys\nfor n in range(20):\n    r, w = os.pipe()\n    if os.fork() == 0:\n        os.setsid()\n        \
         if os.fork() == 0:\n            for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):\n                \
         signal.signal(s, signal.SIG_IGN)\n            os.write(w, b'.')\n            \
         os.execvp('bash', ['bash', '-c', 'exec -a {word} sleep 86390'])\n        os._exit(0)\n    os.wait()\n    os.read(r, 1)\n{last}"
    )
}

#[test]
fn daemons_that_hold_the_output_open_and_are_deaf_hold_nothing_up() {
    let world = World::up();
    let word = unique("86390");
    let ran = python(&world, &[], &daemons(&word, "print('over', flush=True)\nsys.exit(3)")).exits(3);
    assert_eq!(ran.text(), "over\n");
    ended_as(&world, "command_failed");
    eventually("every daemon is dead", || host::find(&word).is_empty().then_some(()));
    lives_on(&world);
}

#[test]
fn the_time_limit_waits_for_nobody_who_is_deaf() {
    let world = World::up();
    let word = unique("86391");
    let deaf =
        daemons(&word, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\nsignal.pause()");
    let ran = python(&world, &["--timeout", "3s"], &deaf).exits(124);
    assert_eq!(ran.text(), "deaf\n", "what was said is kept");
    let ended = ended_as(&world, "timeout");
    let took = ended.view["ended_at"].as_i64().zip(ended.view["started_at"].as_i64()).map(|(end, start)| end - start);
    assert!(took.is_some_and(|micros| (2_900_000..20_000_000).contains(&micros)), "{}", ended.view);
    eventually("every daemon is dead", || host::find(&word).is_empty().then_some(()));
    lives_on(&world);
}

#[test]
fn killing_waits_for_nobody_who_is_deaf() {
    let world = World::up();
    let word = unique("86392");
    let deaf =
        daemons(&word, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\nsignal.pause()");
    let mut running = world.running(["--", "/usr/bin/python3", "-c", &deaf]);
    running.says("deaf");
    let run = world.newest();
    world.holm(["cancel", "--kill", &run]).succeeds();
    running.wait().exits(130);
    ended_as(&world, "cancelled");
    eventually("every daemon is dead", || host::find(&word).is_empty().then_some(()));
    lives_on(&world);
}
