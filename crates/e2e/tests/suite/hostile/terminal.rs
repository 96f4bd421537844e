//! Output that would steer the terminal of whoever looks at it.

use std::{
    fs::File,
    io::Read as _,
    os::fd::OwnedFd,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use holm_e2e::{DEADLINE, World};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::lives_on;

/// Clears the screen, sets the title, writes to the clipboard, asks the terminal for an answer; and what is harmless.
const NASTY: &str = "printf 'a\\033[2J\\033]0;t\\007\\033]52;c;eA==\\033\\\\\\302\\2336n\\010\\n'; printf '\\033[31mred\\033[0m\\ttab\\n'";
const EXACT: &[u8] = b"a\x1b[2J\x1b]0;t\x07\x1b]52;c;eA==\x1b\\\xc2\x9b6n\x08\n\x1b[31mred\x1b[0m\ttab\n";
const VISIBLE: &str = "a^[[2J^[]0;t^G^[]52;c;eA==^[\\\\u{9b}6n^H\r\n\x1b[31mred\x1b[0m\ttab\r\n";

/// Runs a command with its standard output and error on a terminal of its own; what the terminal got.
fn on_a_terminal(command: &mut Command) -> (String, i32) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
    grantpt(&ours).expect("granted");
    unlockpt(&ours).expect("unlocked");
    let name = ptsname(&ours, Vec::new()).expect("a name").into_string().expect("text");
    let open = || -> OwnedFd { File::options().read(true).write(true).open(&name).expect("the other end").into() };
    let mut child = command.stdin(Stdio::null()).stdout(open()).stderr(open()).spawn().expect("started");
    // Its ends in this process are closed with the command's own.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let reader = std::thread::spawn(move || {
        let (mut bytes, mut piece, mut file) = (Vec::new(), [0; 4_096], File::from(ours));
        // A terminal whose other end is closed answers with an error.
        while let Ok(length @ 1..) = file.read(&mut piece) {
            bytes.extend_from_slice(&piece[..length]);
        }
        bytes
    });
    let deadline = Instant::now() + DEADLINE;
    let status = loop {
        match child.try_wait().expect("a child") {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                let _gone = child.kill();
                panic!("it did not end in time");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let bytes = reader.join().expect("read to the end");
    (String::from_utf8_lossy(&bytes).into_owned(), status.code().unwrap_or(-1))
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
