//! Output that would steer the terminal of whoever looks at it.

use std::process::Command;

use holm_e2e::{OnTerminal, World};

use super::lives_on;

/// Clears the screen, sets the title, writes to the clipboard, asks the terminal for an answer; and what is harmless.
const NASTY: &str = "printf 'a\\033[2J\\033]0;t\\007\\033]52;c;eA==\\033\\\\\\302\\2336n\\010\\n'; printf '\\033[31mred\\033[0m\\ttab\\n'";
const EXACT: &[u8] = b"a\x1b[2J\x1b]0;t\x07\x1b]52;c;eA==\x1b\\\xc2\x9b6n\x08\n\x1b[31mred\x1b[0m\ttab\n";
const VISIBLE: &str = "a^[[2J^[]0;t^G^[]52;c;eA==^[\\\\u{9b}6n^H\r\n\x1b[31mred\x1b[0m\ttab\r\n";

/// Runs a command on a terminal of its own; what the terminal got.
fn on_a_terminal(command: &mut Command) -> (String, i32) {
    OnTerminal::start(command).wait()
}

#[test]
fn on_a_terminal_it_becomes_visible_and_in_pipes_it_stays_exact() {
    let world = World::up();
    let ran = world.run(["--quiet", "--", "sh", "-c", NASTY]).succeeds();
    assert_eq!(ran.stdout, EXACT);
    let run = world.newest();
    assert_eq!(world.logs(&run).stdout, EXACT);

    let (shown, code) = on_a_terminal(world.command().args(["run", "--quiet", "--", "sh", "-c", NASTY]));
    assert!(code == 0 && shown.contains(VISIBLE), "{code} {shown:?}");
    for arguments in [vec!["logs", &run], vec!["logs", "--follow", &run]] {
        let (shown, code) = on_a_terminal(world.command().args(arguments));
        assert_eq!((shown.as_str(), code), (VISIBLE, 0));
    }
    lives_on(&world);
}

#[test]
fn the_error_stream_is_tamed_as_well() {
    let world = World::up();
    let script = "printf '\\033[2Jboth\\n' >&2; printf '\\033[35mleft on'";
    let (shown, code) = on_a_terminal(world.command().args(["run", "--quiet", "--", "sh", "-c", script]));
    assert!(
        code == 0 && shown.contains("^[[2Jboth\r\n") && shown.contains("\x1b[35mleft on\x1b[0m"),
        "{code} {shown:?}"
    );
    lives_on(&world);
}
