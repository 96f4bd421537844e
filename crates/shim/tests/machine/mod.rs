//! QEMU's microvm machine with a wire of two virtio-serial ports: an initramfs, a command line, and its monitor (QMP).

use std::{
    fs::File,
    io::{BufRead as _, BufReader, IoSlice, Write as _},
    os::{
        fd::AsFd as _,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

/// For one step of QEMU on a busy host.
const PATIENCE: Duration = Duration::from_secs(120);
const COMMANDS: [&str; 11] = ["cat", "date", "echo", "head", "hostname", "od", "seq", "sh", "sleep", "touch", "true"];
/// In this order: each needs those before it.
const MODULES: [&str; 4] =
    ["virtio/virtio_ring.ko", "virtio/virtio.ko", "virtio/virtio_mmio.ko", "char/virtio_console.ko"];

/// The kernel that `cargo xtask setup` unpacked, and the folder of its drivers.
pub fn kernel() -> (PathBuf, PathBuf) {
    let dir = std::env::var_os("HOLM_TEST_KERNEL_DIR");
    let dir = PathBuf::from(dir.expect("HOLM_TEST_KERNEL_DIR is set by `cargo xtask test`, after `cargo xtask setup`"));
    let only = |dir: PathBuf, prefix: &str| -> PathBuf {
        let entries = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let found = entries.map(|entry| entry.unwrap().path());
        let mut found: Vec<_> =
            found.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix)).collect();
        assert_eq!(found.len(), 1, "one kernel in {}", dir.display());
        found.remove(0)
    };
    (only(dir.join("boot"), "vmlinuz-"), only(dir.join("lib/modules"), "").join("kernel/drivers"))
}

/// A cpio archive in the form that kernels take (newc, Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    /// Owned by root as the workload sees it; the guest has no use for owners.
    fn add(&mut self, name: &str, mode: u32, data: &[u8], device: (u32, u32)) {
        self.entries += 1;
        let fields =
            [self.entries, mode, 1, 1, 1, 0, data.len() as u32, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            write!(self.bytes, "{field:08x}").unwrap();
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn dir(&mut self, name: &str, mode: u32) {
        self.add(name, 0o040_000 | mode, &[], (0, 0));
    }

    fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.add(name, 0o100_000 | mode, data, (0, 0));
    }
}

/// The guest as /init, the modules that the wire needs, and a shell with the usual commands in it.
pub fn initramfs(guest: &[u8], drivers: &Path) -> Vec<u8> {
    let mut cpio = Cpio::default();
    for dir in ["bin", "dev", "etc", "etc/holm", "lib", "proc", "root", "run", "sys"] {
        cpio.dir(dir, 0o755);
    }
    cpio.dir("tmp", 0o1777);
    cpio.add("dev/console", 0o020_600, &[], (5, 1));
    cpio.add("dev/null", 0o020_666, &[], (1, 3));
    cpio.file("init", 0o755, guest);
    cpio.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    cpio.file("etc/group", 0o644, b"root:x:0:\n");
    let mut list = String::new();
    for module in MODULES {
        let name = format!("lib/{}", module.rsplit('/').next().unwrap());
        cpio.file(&name, 0o644, &driver(&drivers.join(module)));
        list += &format!("/{name}\n");
    }
    cpio.file("etc/holm/modules", 0o644, list.as_bytes());
    cpio.file("bin/busybox", 0o755, &busybox());
    for name in COMMANDS {
        cpio.add(&format!("bin/{name}"), 0o120_777, b"busybox", (0, 0));
    }
    cpio.add("TRAILER!!!", 0, &[], (0, 0));
    cpio.bytes
}

/// A driver as the kernel loads it; some distributions pack them.
fn driver(path: &Path) -> Vec<u8> {
    let packed = path.with_extension("ko.xz");
    if !packed.exists() {
        return std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let unpacked = Command::new("xz").arg("-dc").arg(&packed).output().unwrap();
    assert!(unpacked.status.success(), "{}: {unpacked:?}", packed.display());
    unpacked.stdout
}

fn busybox() -> Vec<u8> {
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path).map(|dir| dir.join("busybox")).find(|program| program.exists());
    let program = std::fs::read(found.expect("busybox is installed by `cargo xtask setup`")).unwrap();
    // Program headers (from byte 32 on: where they are; 54: their size; 56: how many), of which 3 names a dynamic loader.
    let u16_at = |at: usize| usize::from(u16::from_le_bytes([program[at], program[at + 1]]));
    let headers = u64::from_le_bytes(program[32..40].try_into().unwrap()) as usize;
    let is_static = (0..u16_at(56)).all(|number| program[headers + number * u16_at(54)] != 3);
    assert!(is_static, "this busybox is not the static one, which `cargo xtask setup` installs");
    program
}

/// What boots.
pub struct Boot {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

/// A running machine; it ends with the thread that started it, whatever happens to that.
pub struct Machine {
    child: Child,
    console: PathBuf,
    qmp: Option<Qmp>,
    /// The two lanes, as the host holds them.
    pub lanes: Option<(UnixStream, UnixStream)>,
}

/// What a restored machine's clock ticks with must be what it was saved with: the host's own frequency.
fn tsc_khz() -> u64 {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let mhz = info.lines().find_map(|line| line.strip_prefix("cpu MHz")).unwrap();
    (mhz.split(':').nth(1).unwrap().trim().parse::<f64>().unwrap() * 1000.0) as u64
}

impl Machine {
    /// Boots, or with nothing to boot waits for a state to be restored; `name` is a folder of its own below `dir`.
    pub fn start(dir: &Path, name: &str, memory: &Path, boot: Option<&Boot>) -> Self {
        let dir = dir.join(name);
        std::fs::create_dir(&dir).unwrap();
        let listen = |name: &str| UnixListener::bind(dir.join(name)).unwrap();
        let (lane_in, lane_out) = (listen("in"), listen("out"));
        let share = if boot.is_some() { "on" } else { "off" };
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-M", "microvm,acpi=on,rtc=on,isa-serial=on,x-option-roms=off,memory-backend=mem"])
            .arg("-object")
            .arg(format!("memory-backend-file,id=mem,size=128M,mem-path={},share={share}", memory.display()))
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", "128"])
            .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"]);
        match boot {
            None => drop(command.args(["-incoming", "defer"])),
            Some(Boot { kernel, initramfs }) => {
                command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs).arg("-append").arg(format!(
                    "quiet console=ttyS0 reboot=t panic=-1 tsc_early_khz={} lpj=4000000 tsc=reliable no_timer_check cryptomgr.notests",
                    tsc_khz()
                ));
            }
        }
        command.args(["-device", "virtio-serial-device,max_ports=3"]);
        for (id, port) in [("in", "wire.in"), ("out", "wire.out")] {
            command.arg("-chardev").arg(format!("socket,id={id},path={}", dir.join(id).display()));
            command.arg("-device").arg(format!("virtserialport,chardev={id},name={port}"));
        }
        let (qmp, console) = (dir.join("qmp"), dir.join("console"));
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", qmp.display()));
        command.args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
        let child = command.stdin(Stdio::null()).spawn().expect("setpriv is installed by `cargo xtask setup`");
        let mut machine = Self { child, console, qmp: None, lanes: None };
        machine.lanes = Some((machine.accept(&lane_in), machine.accept(&lane_out)));
        machine.qmp = Some(Qmp::connect(&qmp));
        machine
    }

    /// QEMU connects before the machine runs; if it ends instead, that is said.
    fn accept(&mut self, listener: &UnixListener) -> UnixStream {
        listener.set_nonblocking(true).unwrap();
        let begun = Instant::now();
        loop {
            match listener.accept() {
                Ok((stream, _)) => return stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            assert_eq!(self.child.try_wait().unwrap(), None, "qemu-system-x86_64 ended or is not installed");
            assert!(begun.elapsed() < PATIENCE, "QEMU did not connect");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn qmp(&mut self) -> &mut Qmp {
        self.qmp.as_mut().unwrap()
    }

    /// Stops the machine and writes its state without the memory, which lies in its file already; then ends it.
    pub fn save(mut self, state: &Path) {
        let qmp = self.qmp();
        qmp.share_memory();
        qmp.execute("migrate-set-parameters", json!({"max-bandwidth": 1_u64 << 40}));
        qmp.execute("stop", json!({}));
        qmp.give("state", &File::create(state).unwrap());
        qmp.execute("migrate", json!({"uri": "fd:state"}));
        qmp.wait_for("query-migrate", |answer| {
            assert_ne!(answer["status"], "failed", "{answer}");
            answer["status"] == "completed"
        });
        qmp.execute("quit", json!({}));
        self.ended();
    }

    /// Waits until it has ended by itself, and in order.
    pub fn ended(mut self) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < PATIENCE, "QEMU does not end");
            std::thread::sleep(Duration::from_millis(2));
        };
        assert_eq!(status.code(), Some(0), "QEMU ended with {status}");
    }

    /// Loads a state that [`Machine::save`] wrote, and lets the machine go on.
    pub fn restore(&mut self, state: &Path) {
        let qmp = self.qmp();
        qmp.share_memory();
        qmp.give("state", &File::open(state).unwrap());
        qmp.execute("migrate-incoming", json!({"uri": "fd:state"}));
        qmp.wait_for("query-status", |answer| answer["status"] != "inmigrate");
        qmp.execute("cont", json!({}));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.console.display(), std::fs::read_to_string(&self.console).unwrap_or_default());
        }
    }
}

/// The monitor of a machine (docs/interop/qmp-spec.txt of QEMU).
struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    fn connect(path: &Path) -> Self {
        let begun = Instant::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "QMP: {error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut qmp = Self { stream: BufReader::new(stream) };
        assert!(qmp.line()["QMP"].is_object());
        qmp.execute("qmp_capabilities", json!({}));
        qmp
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("QMP said {line:?}: {error}"))
    }

    fn answer(&mut self, command: &str) -> Value {
        loop {
            let line = self.line();
            if let Some(error) = line.get("error") {
                panic!("{command}: {error}");
            }
            // Events come in between.
            if let Some(answer) = line.get("return") {
                return answer.clone();
            }
        }
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let line = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        self.stream.get_mut().write_all(line.as_bytes()).unwrap();
        self.answer(command)
    }

    /// Hands a file over under a name.
    fn give(&mut self, name: &str, file: &File) {
        let line = json!({"execute": "getfd", "arguments": {"fdname": name}}).to_string() + "\n";
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [file.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let sent = sendmsg(self.stream.get_ref(), &[IoSlice::new(line.as_bytes())], &mut control, SendFlags::empty());
        assert_eq!(sent.unwrap(), line.len());
        self.answer("getfd");
    }

    fn share_memory(&mut self) {
        let capabilities = json!([{"capability": "x-ignore-shared", "state": true}]);
        self.execute("migrate-set-capabilities", json!({"capabilities": capabilities}));
    }

    fn wait_for(&mut self, query: &str, done: impl Fn(&Value) -> bool) {
        let begun = Instant::now();
        while !done(&self.execute(query, json!({}))) {
            assert!(begun.elapsed() < PATIENCE, "{query}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
