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

const PATIENCE: Duration = Duration::from_secs(60);
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
    fn add(&mut self, name: &str, mode: u32, data: &[u8], device: (u32, u32)) {
        self.entries += 1;
        let fields =
            [self.entries, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
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

    fn dir(&mut self, name: &str) {
        self.add(name, 0o040_755, &[], (0, 0));
    }

    fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.add(name, 0o100_000 | mode, data, (0, 0));
    }
}

/// The guest as /init, the modules that the wire needs, and one static program as `true` and `echo`.
pub fn initramfs(guest: &[u8], program: &[u8], drivers: &Path) -> Vec<u8> {
    let mut cpio = Cpio::default();
    for dir in ["bin", "dev", "etc", "etc/holm", "lib", "proc", "root", "run", "sys", "tmp"] {
        cpio.dir(dir);
    }
    cpio.add("dev/console", 0o020_600, &[], (5, 1));
    cpio.add("dev/null", 0o020_666, &[], (1, 3));
    cpio.file("init", 0o755, guest);
    cpio.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    cpio.file("etc/group", 0o644, b"root:x:0:\n");
    let mut list = String::new();
    for module in MODULES {
        let name = format!("lib/{}", module.rsplit('/').next().unwrap());
        cpio.file(&name, 0o644, &std::fs::read(drivers.join(module)).unwrap());
        list += &format!("/{name}\n");
    }
    cpio.file("etc/holm/modules", 0o644, list.as_bytes());
    for name in ["bin/true", "bin/echo"] {
        cpio.file(name, 0o755, program);
    }
    cpio.add("TRAILER!!!", 0, &[], (0, 0));
    cpio.bytes
}

/// A static program that says its arguments, as echo(1) does, and succeeds.
pub fn static_program(dir: &Path) -> Vec<u8> {
    let (source, program) = (dir.join("echo.rs"), dir.join("echo"));
    let text = r#"fn main() {
        let said: Vec<String> = std::env::args().skip(1).collect();
        if !said.is_empty() { println!("{}", said.join(" ")); }
    }"#;
    std::fs::write(&source, text).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut build = Command::new(rustc);
    build.args(["--edition", "2024", "-C", "target-feature=+crt-static", "-C", "opt-level=1", "-C", "strip=symbols"]);
    assert!(build.arg("-o").arg(&program).arg(&source).status().unwrap().success());
    std::fs::read(program).unwrap()
}

/// What boots.
pub struct Boot {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

/// A running machine.
pub struct Machine {
    child: Child,
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
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-M", "microvm,acpi=on,rtc=on,isa-serial=off,x-option-roms=off,memory-backend=mem"])
            .arg("-object")
            .arg(format!("memory-backend-file,id=mem,size=128M,mem-path={},share={share}", memory.display()))
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", "128"])
            .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"]);
        match boot {
            None => drop(command.args(["-incoming", "defer"])),
            Some(Boot { kernel, initramfs }) => {
                command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs).arg("-append").arg(format!(
                    "quiet reboot=t panic=-1 tsc_early_khz={} lpj=4000000 tsc=reliable no_timer_check cryptomgr.notests",
                    tsc_khz()
                ));
            }
        }
        command.args(["-device", "virtio-serial-device,max_ports=3"]);
        for (id, port) in [("in", "wire.in"), ("out", "wire.out")] {
            command.arg("-chardev").arg(format!("socket,id={id},path={}", dir.join(id).display()));
            command.arg("-device").arg(format!("virtserialport,chardev={id},name={port}"));
        }
        let qmp = dir.join("qmp");
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", qmp.display()));
        command.args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
        let child =
            command.stdin(Stdio::null()).spawn().expect("qemu-system-x86_64 is installed by `cargo xtask setup`");
        let mut machine = Self { child, qmp: None, lanes: None };
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
            assert_eq!(self.child.try_wait().unwrap(), None, "QEMU ended");
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
        assert!(self.child.wait().unwrap().success());
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
