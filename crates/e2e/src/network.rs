//! Hosts of a test's own: network namespaces of this machine, each joined to it by a wire that can be cut, in one direction
//! too. For root only.
//!
//! A direction is cut by what its sender takes for the address of the other end's card: what is sent goes to a card that
//! nobody has, and is dropped without a word, as on a network that lost it. It takes no filter of the kernel's, and holds for
//! connections that there are at once. A namespace lives as long as a process that does nothing in it, and that one no longer
//! than the test; with the namespace the wire goes.

use std::{
    fs,
    net::Ipv4Addr,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{Running, eventually, ran::run};

/// Which directions of a wire are cut, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing arrives at either end.
    Both,
    /// Nothing arrives at the host: what it asks for is done, and it does not hear of it.
    ToHost,
    /// Nothing arrives from the host.
    FromHost,
    /// The host's card is off, of which it is told.
    Off,
}

/// A host: what is started on it shares everything with this machine but the network.
pub struct Host {
    holder: Running,
    here: End,
    there: End,
    cut: Option<Cut>,
}

/// One end of a wire.
struct End {
    card: String,
    address: Ipv4Addr,
}

/// A card that nobody has; the bit for addresses that were made up is set.
const NOBODY: &str = "02:00:00:00:00:01";
/// The addresses are some of those that are kept for the networks of carriers (RFC 6598), which no host of a test has.
const ADDRESSES: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
/// How many wires a process of tests may have, and for how many processes there are addresses at once.
const WIRES_EACH: u32 = 16;
const PROCESSES: u32 = 1 << 16;

impl Host {
    /// Makes a host and its wire.
    #[track_caller]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed) % WIRES_EACH;
        let id = std::process::id();
        let first = ADDRESSES.to_bits() + 4 * (id % PROCESSES * WIRES_EACH + number);
        let end = |side: &str, nth: u32| End {
            card: format!("hm{id}{side}{number}"),
            address: Ipv4Addr::from_bits(first + nth),
        };
        let (here, there) = (end("h", 1), end("t", 2));
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]);
        let holder = Running::start(&mut command);
        let pid = holder.pid();
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        eventually("there is a namespace", || (namespace(pid)? != namespace(std::process::id())?).then_some(()));
        let host = Self { holder, here, there, cut: None };
        let (here, there) = (&host.here, &host.there);
        let pid = pid.to_string();
        ip(&["link", "add", &here.card, "type", "veth", "peer", "name", &there.card, "netns", &pid]);
        ip(&["address", "add", &format!("{}/30", here.address), "dev", &here.card]);
        ip(&["link", "set", &here.card, "up"]);
        host.ip(&["address", "add", &format!("{}/30", there.address), "dev", &there.card]);
        host.ip(&["link", "set", &there.card, "up"]);
        host.ip(&["link", "set", "lo", "up"]);
        host
    }

    /// The address of this machine's end, to which what is on the host connects.
    pub fn reaches(&self) -> Ipv4Addr {
        self.here.address
    }

    /// That command on the host, with no environment but its own.
    pub fn command(&self, inner: &Command) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.pid())).arg("--");
        command.arg(inner.get_program()).args(inner.get_args()).env_clear();
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(dir) = inner.get_current_dir() {
            command.current_dir(dir);
        }
        command
    }

    /// Cuts the wire.
    #[track_caller]
    pub fn cut(&mut self, cut: Cut) {
        assert_eq!(self.cut, None, "it is cut already");
        self.cut = Some(cut);
        let (here, there) = (&self.here, &self.there);
        if cut == Cut::Off {
            self.ip(&["link", "set", &there.card, "down"]);
        }
        if matches!(cut, Cut::Both | Cut::ToHost) {
            ip(&leads_nowhere(here, &there.address.to_string()));
        }
        if matches!(cut, Cut::Both | Cut::FromHost) {
            self.ip(&leads_nowhere(there, &here.address.to_string()));
        }
    }

    /// Mends the wire, if it is cut.
    #[track_caller]
    pub fn mend(&mut self) {
        let Some(cut) = self.cut.take() else { return };
        let (here, there) = (&self.here, &self.there);
        if cut == Cut::Off {
            self.ip(&["link", "set", &there.card, "up"]);
        }
        if matches!(cut, Cut::Both | Cut::ToHost) {
            ip(&["neighbour", "del", &there.address.to_string(), "dev", &here.card]);
        }
        if matches!(cut, Cut::Both | Cut::FromHost) {
            self.ip(&["neighbour", "del", &here.address.to_string(), "dev", &there.card]);
        }
    }

    #[track_caller]
    fn ip(&self, arguments: &[&str]) {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.pid())).arg("ip").args(arguments);
        run(&mut command).succeeds();
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

/// What `ip` is to be told so that what is sent from that end arrives nowhere.
fn leads_nowhere<'a>(from: &'a End, other: &'a str) -> [&'a str; 9] {
    ["neighbour", "replace", other, "lladdr", NOBODY, "dev", &from.card, "nud", "permanent"]
}

#[track_caller]
fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments)).succeeds();
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        time::{Duration, Instant},
    };

    use super::*;
    use crate::host::is_root;

    /// Sends a byte as soon as one comes, and says so.
    const ECHO: &str = "import socket, sys\nwire = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n\
                        while byte := wire.recv(1):\n    print('came', flush=True)\n    wire.send(byte)\n";

    /// How long a byte that was sent again may take.
    const LATE: Duration = Duration::from_secs(20);

    struct Line {
        wire: TcpStream,
        far: Running,
        sent: usize,
    }

    impl Line {
        fn send(&mut self) {
            self.wire.write_all(b"x").expect("it is sent, whether it arrives or not");
            self.sent += 1;
        }

        fn has_come(&self) -> bool {
            self.far.stdout().lines().count() == self.sent
        }

        fn comes(&self) {
            let begun = Instant::now();
            while !self.has_come() {
                assert!(begun.elapsed() < LATE, "it does not come");
                std::thread::sleep(Duration::from_millis(10));
            }
        }

        fn answers(&mut self, within: Duration) -> bool {
            self.wire.set_read_timeout(Some(within)).expect("an option");
            self.wire.read_exact(&mut [0]).is_ok()
        }
    }

    #[test]
    fn a_wire_is_cut_in_the_direction_that_was_asked_for() {
        if !is_root() {
            return;
        }
        let mut host = Host::new();
        let listener = TcpListener::bind((host.reaches(), 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port().to_string();
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-c", ECHO, &host.reaches().to_string(), &port]);
        let far = Running::start(&mut host.command(&python));
        let mut line = Line { wire: listener.accept().expect("it connects").0, far, sent: 0 };
        let short = Duration::from_millis(300);
        for (cut, arrives) in [(Cut::Both, false), (Cut::ToHost, false), (Cut::FromHost, true), (Cut::Off, false)] {
            line.send();
            assert!(line.answers(LATE), "before {cut:?}");
            host.cut(cut);
            line.send();
            if arrives {
                line.comes();
            }
            assert!(!line.answers(short), "{cut:?}");
            assert_eq!(line.has_come(), arrives, "{cut:?}");
            host.mend();
            assert!(line.answers(LATE), "after {cut:?}");
        }
    }
}
