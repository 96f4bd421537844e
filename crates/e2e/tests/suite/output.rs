//! Output: every byte, in order, also late and also much.

use holm_e2e::{World, eventually, host, unique};

#[test]
fn bytes_that_are_no_text_come_back_as_they_are() {
    let world = World::up();
    let ran =
        world.run(["--quiet", "--", "sh", "-c", "printf '\\377\\000\\200ok\\n\\300'; printf '\\376' >&2"]).succeeds();
    assert_eq!(ran.stdout, b"\xff\0\x80ok\n\xc0");
    assert_eq!(ran.stderr, b"\xfe");
    assert_eq!(world.logs(&world.newest()).stdout, b"\xff\0\x80ok\n\xc0");
}

#[test]
fn every_value_of_a_byte_survives() {
    let world = World::up();
    let script = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 64)";
    let ran = world.run(["--", "/usr/bin/python3", "-c", script]).succeeds();
    let wanted: Vec<u8> = (0..64).flat_map(|_| 0..=255u8).collect();
    assert_eq!(ran.stdout, wanted);
}

#[test]
fn ten_megabytes_come_back_exactly() {
    let world = World::up();
    // Lines of all lengths, so that they fall on the edges of buffers in every way.
    let script = "import sys\nw = sys.stdout.buffer.write\ntotal = n = 0\nwhile total < 10 * 1024 * 1024:\n    \
                  line = b'%d:' % n + b'x' * (n * 7919 % 5000) + b'\\n'\n    total += w(line)\n    n += 1\n";
    let ran = world.run(["--", "/usr/bin/python3", "-c", script]).succeeds();
    let mut wanted = Vec::new();
    let mut number = 0usize;
    while wanted.len() < 10 * 1024 * 1024 {
        wanted.extend_from_slice(format!("{number}:{}\n", "x".repeat(number * 7919 % 5000)).as_bytes());
        number += 1;
    }
    assert_eq!(ran.stdout.len(), wanted.len());
    assert!(ran.stdout == wanted, "the bytes differ");
    assert!(world.logs(&world.newest()).stdout == wanted, "what is stored differs");
}

#[test]
fn one_line_without_an_end_comes_back_exactly() {
    let world = World::up();
    let script = "import sys; sys.stdout.write('y' * 3_000_000)";
    let ran = world.run(["--", "/usr/bin/python3", "-c", script]).succeeds();
    assert_eq!(ran.stdout.len(), 3_000_000);
    assert!(ran.stdout.iter().all(|byte| *byte == b'y'));
}

#[test]
fn many_lines_stay_in_order() {
    let world = World::up();
    let ran = world.run(["--", "seq", "1", "20000"]).succeeds();
    let wanted: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    assert!(ran.text() == wanted, "lines are missing, doubled or out of order");
    let page = world.http().get(&format!("/v1/runs/{}/logs?limit=10000", world.newest())).is(200).json();
    let sequences: Vec<u64> =
        page["entries"].as_array().into_iter().flatten().filter_map(|entry| entry["seq"].as_u64()).collect();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
    assert_eq!(sequences.len(), 10_000, "as many as were asked for");
}

#[test]
fn a_line_is_shown_before_the_command_has_ended() {
    let world = World::up();
    let mut running = world.running(["--", "sh", "-c", "printf 'no line feed'; sleep 600"]);
    running.says("no line feed");
    assert!(running.is_alive());
}

#[test]
fn grandchildren_that_were_let_go_end_with_the_run() {
    let world = World::up();
    let word = unique("86397");
    let script = format!("setsid bash -c 'exec -a {word} sleep 86397' >/dev/null 2>&1 & echo main; exit 0");
    let ran = world.run(["--", "bash", "-c", &script]).succeeds();
    assert_eq!(ran.text(), "main\n");
    eventually("the grandchild is dead", || host::find(&word).is_empty().then_some(()));
}

#[test]
fn what_grandchildren_wrote_before_the_end_is_kept() {
    let world = World::up();
    // The grandchild fills the pipe while the main process leaves: all that is in the pipe counts.
    let script = "import os, sys\nr, w = os.pipe()\nif os.fork() == 0:\n    os.setsid()\n    os.close(r)\n    \
                  os.write(1, b'late ' * 10000)\n    os.write(w, b'.')\n    import time; time.sleep(600)\n\
                  os.close(w)\nos.read(r, 1)\nos._exit(5)\n";
    let ran = world.run(["--", "/usr/bin/python3", "-c", script]).exits(5);
    assert_eq!(ran.text(), "late ".repeat(10_000));
}

#[test]
fn a_grandchild_that_holds_the_pipe_does_not_hold_the_run() {
    let world = World::up();
    // It has inherited standard output and would keep it open for ten minutes.
    let ran = world.run(["--", "sh", "-c", "sleep 600 & echo over"]).succeeds();
    assert_eq!(ran.text(), "over\n");
}

#[test]
fn what_grandchildren_write_after_the_end_is_cut_and_never_torn() {
    let world = World::up();
    // The run ends with its main process, so what comes later may be missing from some point on; nothing before that is.
    let script = "import os\nif os.fork() == 0:\n    os.setsid()\n    n = 0\n    while True:\n        \
                  os.write(1, b'%d\\n' % n)\n        n += 1\nimport time; time.sleep(0.3)\nos._exit(5)\n";
    let ran = world.run(["--log-limit", "16g", "--", "/usr/bin/python3", "-c", script]).exits(5);
    let whole: Vec<&str> = ran.text().split('\n').collect();
    let (last, lines) = whole.split_last().expect("a piece");
    assert!(!lines.is_empty(), "what came before the end is there");
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(*line, number.to_string(), "of {}", lines.len());
    }
    assert!(lines.len().to_string().starts_with(last), "{last}");
    assert!(world.logs(&world.newest()).text() == ran.text(), "what is stored differs");
}
