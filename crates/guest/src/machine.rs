//! Where the guest runs, and what that changes: in namespaces of the host's kernel, or as the init of a machine.

use std::{
    fs,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use holm_wire::guest_api::PostRestore;
use rustix::{
    fs::{FileType, Mode, OFlags, symlink},
    mount::MountFlags,
};

use crate::{inner::context, sys};

/// The descriptors of the lanes in process mode.
const LANE_IN_FD: i32 = 3;
const LANE_OUT_FD: i32 = 4;
/// The names of the virtio ports in machine mode.
const PORT_NAMES: [&str; 2] = ["wire.in", "wire.out"];
const PORTS: &str = "/sys/class/virtio-ports";
/// How long the ports may take to appear once their driver was loaded; emulation on a busy host is slow.
const PORTS_DEADLINE: Duration = Duration::from_secs(60);
/// Modules to load, one path a line, in this order.
const MODULES: &str = "/etc/holm/modules";
/// What the workload sees as the identity of this boot in a virtual machine, in a folder that it cannot enter.
pub const BOOT_ID: &str = "/dev/.holm/boot_id";
const BOOT_ID_DIR: &str = "/dev/.holm";
/// A new identity at every read.
const FRESH_ID: &str = "/proc/sys/kernel/random/uuid";
const ENTROPY_BYTES: std::ops::RangeInclusive<usize> = 32..=512;

/// Where the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// In namespaces that a runtime made, with the lanes as descriptors.
    Process,
    /// As the first program of a virtual machine, with the lanes as virtio ports.
    Virtual,
}

impl Machine {
    /// A socket on descriptor 3 is what a runtime hands to a process; a kernel hands over nothing.
    pub fn detect() -> Self {
        if sys::is_socket(LANE_IN_FD) { Machine::Process } else { Machine::Virtual }
    }

    /// Makes the guest's own surroundings and finds the lanes, in and out.
    pub fn boot(self) -> io::Result<[OwnedFd; 2]> {
        match self {
            Machine::Process => Ok([sys::inherited(LANE_IN_FD)?, sys::inherited(LANE_OUT_FD)?]),
            Machine::Virtual => {
                mount_kernel_files()?;
                rustix::fs::mkdir(BOOT_ID_DIR, Mode::from_raw_mode(0o700))?;
                renew_boot_id()?;
                load_modules()?;
                find_ports()
            }
        }
    }

    /// Renews what a clone must not share with its snapshot.
    pub fn renew(self, renewal: &PostRestore) -> io::Result<()> {
        if self == Machine::Process {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "entropy and clock are the host's own here"));
        }
        let entropy =
            from_hex(&renewal.entropy_hex).filter(|entropy| ENTROPY_BYTES.contains(&entropy.len())).ok_or_else(
                || io::Error::new(io::ErrorKind::InvalidInput, "the entropy is not 32 to 512 bytes in hexadecimal"),
            )?;
        let device = rustix::fs::open("/dev/urandom", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        sys::add_entropy(std::os::fd::AsFd::as_fd(&device), &entropy).map_err(|error| context(error, "add entropy"))?;
        renew_boot_id().map_err(|error| context(error, "renew the boot's identity"))?;
        sys::set_clock(renewal.unix_micros).map_err(|error| context(error, "set the clock"))?;
        Ok(rustix::system::sethostname(renewal.hostname.as_bytes())?)
    }

    /// The end. In a machine it does not return: rebooting is how a virtual machine without firmware ends.
    pub fn end(self) -> io::Result<()> {
        match self {
            Machine::Process => Ok(()),
            Machine::Virtual => {
                rustix::fs::sync();
                Ok(rustix::system::reboot(rustix::system::RebootCommand::Restart)?)
            }
        }
    }
}

/// The kernel's own file systems, and the devices that programs expect.
fn mount_kernel_files() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (kind, target, flags, data) in [
        ("proc", "/proc", flags, None),
        ("sysfs", "/sys", flags | MountFlags::RDONLY, None),
        ("tmpfs", "/dev", MountFlags::NOSUID, Some(c"mode=0755,size=64k")),
    ] {
        make_dir(target)?;
        rustix::mount::mount(kind, target, kind, flags, data)
            .map_err(|error| context(error.into(), &format!("mount {target}")))?;
    }
    for (name, major, minor) in
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)]
    {
        make_device(&format!("/dev/{name}"), 0o666, rustix::fs::makedev(major, minor))?;
    }
    make_dir("/dev/pts")?;
    make_dir("/dev/shm")?;
    let pts = rustix::mount::mount(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        Some(c"newinstance,ptmxmode=0666,mode=0620,gid=0"),
    );
    pts.map_err(|error| context(error.into(), "mount /dev/pts"))?;
    rustix::mount::mount("tmpfs", "/dev/shm", "tmpfs", flags, Some(c"mode=1777"))?;
    for (link, target) in [
        ("/dev/ptmx", "pts/ptmx"),
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, link)?;
    }
    Ok(())
}

/// Written in place, for the file is mounted where programs look for it.
fn renew_boot_id() -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let file = rustix::fs::open(BOOT_ID, flags, Mode::from_raw_mode(0o444))?;
    // One write of the same length: no reader sees half of it.
    fs::File::from(file).write_all(fs::read_to_string(FRESH_ID)?.as_bytes())
}

fn make_dir(path: &str) -> io::Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(context(error.into(), &format!("make {path}"))),
    }
}

fn make_device(path: &str, mode: u32, device: rustix::fs::Dev) -> io::Result<()> {
    let made = rustix::fs::mknodat(rustix::fs::CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(mode), device);
    made.map_err(|error| context(error.into(), &format!("make {path}")))?;
    // The umask does not apply to this.
    Ok(rustix::fs::chmod(path, Mode::from_raw_mode(mode))?)
}

/// Loads what the image lists. A list that is not there means a kernel that has everything built in.
fn load_modules() -> io::Result<()> {
    let list = match fs::read_to_string(MODULES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for path in list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let module = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let module = module.map_err(|error| context(error.into(), &format!("open {path}")))?;
        match rustix::system::finit_module(&module, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(context(error.into(), &format!("load {path}"))),
        }
    }
    Ok(())
}

/// Opens the ports by their names; the order in which the machine numbers them means nothing.
fn find_ports() -> io::Result<[OwnedFd; 2]> {
    let deadline = Instant::now() + PORTS_DEADLINE;
    loop {
        let [lane_in, lane_out] = PORT_NAMES.map(find_port);
        if let (Some(lane_in), Some(lane_out)) = (lane_in, lane_out) {
            return Ok([open_port(&lane_in)?, open_port(&lane_out)?]);
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no virtio ports {PORT_NAMES:?}")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The device number of the port with this name, as sysfs writes it.
fn find_port(name: &str) -> Option<String> {
    fs::read_dir(PORTS).ok()?.flatten().find_map(|port| {
        let read = |file: &str| small(&port.path().join(file)).ok();
        (read("name")?.trim() == name).then(|| read("dev"))?
    })
}

fn small(path: &Path) -> io::Result<String> {
    let mut content = String::new();
    fs::File::open(path)?.take(256).read_to_string(&mut content)?;
    Ok(content)
}

/// Opens the port through a node that exists for this moment only.
fn open_port(device: &str) -> io::Result<OwnedFd> {
    let numbers =
        device.trim().split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let (major, minor) = numbers.ok_or_else(|| io::Error::other("a port without a device number"))?;
    let node = "/dev/.holm-port";
    make_device(node, 0o600, rustix::fs::makedev(major, minor))?;
    let opened = rustix::fs::open(node, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty());
    rustix::fs::unlink(node)?;
    opened.map_err(|error| context(error.into(), "open a port"))
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}
