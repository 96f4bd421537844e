//! Output without measure: one line that does not end, very many that say nothing.

use std::time::{Duration, Instant};

use holm_e2e::{World, host};

use super::lives_on;

/// What a slow machine takes for the largest outputs.
const PATIENCE: Duration = Duration::from_secs(240);
/// Where a line is cut: the longest entry of a log (docs/limits.md).
const ENTRY_BYTES_MAX: usize = 64 * 1024;
/// What a shim may have in memory at one instant, however much goes through it.
const SHIM_BYTES_MAX: u64 = 48 << 20;
/// How long the line is, and how many are empty: in `cargo xtask sizes`, and in every other run of the tests.
const FULL_SIZES: (usize, usize) = (1 << 30, 10_000_000);
const SMALL_SIZES: (usize, usize) = (64 << 20, 500_000);

fn sizes() -> (usize, usize) {
    match std::env::var("HOLM_TEST_SIZES").as_deref() {
        Err(_) => SMALL_SIZES,
        Ok("full") => FULL_SIZES,
        Ok(other) => panic!("HOLM_TEST_SIZES={other}: it is not set, or `full`"),
    }
}

/// The most memory that each living shim of the world has had.
fn shim_peaks(world: &World) -> Vec<u64> {
    let mut marks = world.marks();
    marks.runs.push(world.newest());
    let shims = marks.processes().into_iter().filter(|pid| host::command_line(*pid).contains(" shim "));
    let peak = |pid| host::status_field(pid, "VmHWM")?.trim_end_matches(" kB").trim().parse::<u64>().ok();
    shims.filter_map(peak).map(|kib| kib * 1_024).collect()
}

#[test]
fn one_line_without_end_comes_back_exactly_in_marked_pieces() {
    let (length, _) = sizes();
    let world = World::up();
    let gate = world.folder("gate");
    let script = format!(
        "import os, sys, time\nfor n in range(64): sys.stdout.write('y' * {})\nsys.stdout.flush()\n\
         while not os.path.exists('/gate/open'): time.sleep(0.02)",
        length / 64
    );
    let mount = format!("{}:/gate", gate.display());
    let running = world.running(["--mount", &mount, "--", "/usr/bin/python3", "-c", &script]);
    let deadline = Instant::now() + PATIENCE;
    while running.stdout_bytes() < length && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    let shims = shim_peaks(&world);
    assert!(shims.len() == 1 && shims[0] <= SHIM_BYTES_MAX, "{shims:?} bytes");
    std::fs::write(gate.join("open"), "").expect("a file");
    let ran = running.wait_for(PATIENCE).succeeds();
    assert!(ran.stdout.len() == length && ran.stdout.iter().all(|byte| *byte == b'y'), "{}", ran.stdout.len());
    let run = world.newest();
    let page = world.http().get(&format!("/v1/runs/{run}/logs?limit=20")).is(200).json();
    let entries = page["entries"].as_array().expect("a list");
    assert_eq!(entries.len(), 20);
    for entry in entries {
        assert_eq!(entry["partial"], true, "a piece says that the line goes on");
        let text = entry["text"].as_str().expect("text");
        assert!(text.len() <= ENTRY_BYTES_MAX, "{}", text.len());
    }
    let view = world.until_ended(&run);
    assert_eq!(view["usage"]["log_bytes"], length, "{view}");
    lives_on(&world);
}

#[test]
fn empty_lines_in_great_number_are_all_kept() {
    let (_, count) = sizes();
    let world = World::up();
    let script = format!("import sys\nsys.stdout.write('\\n' * {count})");
    let ran = world.running(["--", "/usr/bin/python3", "-c", &script]).wait_for(PATIENCE).succeeds();
    assert!(ran.stdout.len() == count && ran.stdout.iter().all(|byte| *byte == b'\n'), "{}", ran.stdout.len());
    let after = count - 10;
    let page = world.http().get(&format!("/v1/runs/{}/logs?after={after}&limit=100", world.newest())).is(200).json();
    assert_eq!((page["entries"].as_array().map(Vec::len), &page["last_seq"]), (Some(10), &count.into()));
    lives_on(&world);
}
