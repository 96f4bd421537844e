//! The guest in real namespaces, driven over the wire as a shim would. Needs root, as the test machine has it.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use holm_wire::{
    guest_api::{CHANGES_TOO_DEEP, Exit, Failure, SpawnFailure, SpawnFailureKind},
    http2,
};
use http::{Method, StatusCode};
use support::{Sandbox, main_of, spawn_of};

const DEADLINE: Duration = Duration::from_secs(30);

async fn limited<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, test).await.expect("the test took too long")
}

#[tokio::test]
async fn runs_a_command_as_a_user_and_says_how_it_ended() {
    limited(async {
        let (_sandbox, epoch) = Sandbox::ready().await;
        let (exit, told) = epoch.run(&spawn_of("ann", &["sh", "-c", "id; pwd; hostname; echo err >&2; exit 7"])).await;
        assert_eq!(exit, Exit::Code(7));
        assert_eq!(told.text(), "uid=1000(ann) gid=1000(ann) groups=1000(ann),77(extra)\n/home/ann\nisle\n");
        assert_eq!(told.errors(), "err\n");
        let (exit, told) = epoch.run(&spawn_of("0", &["sh", "-c", "id -u; kill -SEGV $$"])).await;
        assert_eq!((exit, told.text().as_str()), (Exit::Signal(11), "0\n"));
        let (_, told) = epoch.run(&spawn_of("ann", &["printf", "\\377\\0x"])).await;
        assert_eq!(told.stdout, b"\xff\0x");
    })
    .await;
}

#[tokio::test]
async fn says_why_a_command_cannot_be_started() {
    limited(async {
        let (_sandbox, epoch) = Sandbox::ready().await;
        let mut bad_dir = spawn_of("root", &["true"]);
        bad_dir.cwd = Some("/nowhere".into());
        let mut no_entry = spawn_of("4711:4711", &["true"]);
        no_entry.cwd = Some("/run/holm/../../proc/1/root".into());
        for (spawn, kind) in [
            (spawn_of("root", &["nothing-of-this-name"]), SpawnFailureKind::NotFound),
            (spawn_of("root", &["/usr/nothing"]), SpawnFailureKind::NotFound),
            (spawn_of("root", &["/etc/passwd"]), SpawnFailureKind::NotExecutable),
            (spawn_of("root", &["/usr"]), SpawnFailureKind::NotExecutable),
            (spawn_of("nobody-here", &["true"]), SpawnFailureKind::UnknownUser),
            (bad_dir, SpawnFailureKind::BadWorkDir),
            (no_entry, SpawnFailureKind::BadWorkDir),
        ] {
            let Err(http2::Error::Status { status, body }) = epoch.spawn(&spawn).await else {
                panic!("{spawn:?} was started");
            };
            assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
            let failure: SpawnFailure = serde_json::from_slice(&body).unwrap();
            assert_eq!(failure.kind, kind, "{spawn:?}: {}", failure.message);
        }
    })
    .await;
}

#[tokio::test]
async fn the_end_of_the_main_command_is_the_end_of_all() {
    limited(async {
        let (_sandbox, epoch) = Sandbox::ready().await;
        let script =
            "setsid sleep 1000 & (setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 1; done' &) ; echo done; exit 3";
        let beside = epoch.spawn(&spawn_of("ann", &["sleep", "1000"])).await.unwrap();
        let (exit, told) = epoch.run(&main_of("ann", &["sh", "-c", script])).await;
        assert_eq!((exit, told.text().as_str()), (Exit::Code(3), "done\n"));
        assert_eq!(epoch.wait(beside).await, Exit::Signal(9));
        let message = refusal(epoch.spawn(&spawn_of("root", &["true"])).await);
        assert_eq!(message, "the workload has ended");
    })
    .await;
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, http2::Error>) -> String {
    let Err(http2::Error::Status { body, .. }) = answer else { panic!("{answer:?}") };
    // Both bodies of errors have a message.
    let failure: serde_json::Value = serde_json::from_slice(&body).unwrap();
    failure["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn other_commands_end_alone() {
    limited(async {
        let (_sandbox, epoch) = Sandbox::ready().await;
        for said in ["one\n", "two\n"] {
            let (exit, told) = epoch.run(&spawn_of("root", &["echo", said.trim()])).await;
            assert_eq!((exit, told.text().as_str()), (Exit::Code(0), said));
        }
    })
    .await;
}

#[tokio::test]
async fn a_workload_that_broke_down_is_not_a_command_that_was_killed() {
    limited(async {
        let (sandbox, epoch) = Sandbox::ready().await;
        let init = sandbox.inner_init();
        let main = epoch.spawn(&main_of("root", &["sleep", "1000"])).await.unwrap();
        rustix::process::kill_process(init, rustix::process::Signal::KILL).unwrap();
        let how = "the workload broke down: its init ";
        let path = format!("/processes/{main}?wait=1");
        let answer = refusal(epoch.client.bytes(Method::GET, &path, None::<&()>).await);
        assert!(answer.starts_with(how), "{answer}");
        let answer = refusal(epoch.spawn(&spawn_of("root", &["true"])).await);
        assert!(answer.starts_with(how), "{answer}");
        // What the workload or the host kills was killed.
        let (_sandbox, epoch) = Sandbox::ready().await;
        let (exit, _) = epoch.run(&spawn_of("root", &["sh", "-c", "kill -KILL $$"])).await;
        assert_eq!(exit, Exit::Signal(9));
        let main = epoch.spawn(&main_of("root", &["sleep", "1000"])).await.unwrap();
        epoch.signal(main, libc::SIGKILL, true).await;
        assert_eq!(epoch.wait(main).await, Exit::Signal(9));
    })
    .await;
}

#[tokio::test]
async fn loses_no_output_under_back_pressure() {
    limited(async {
        let (_sandbox, epoch) = Sandbox::ready().await;
        let script = "head -c 3000000 /dev/zero | tr '\\0' a; head -c 100000 /dev/zero | tr '\\0' b >&2";
        let (exit, told) = epoch.run(&spawn_of("ann", &["sh", "-c", script])).await;
        assert_eq!(exit, Exit::Code(0));
        assert_eq!((told.stdout.len(), told.stderr.len()), (3_000_000, 100_000));
        assert!(told.stdout.iter().all(|&byte| byte == b'a') && told.stderr.iter().all(|&byte| byte == b'b'));
    })
    .await;
}

#[tokio::test]
async fn a_process_waits_while_nobody_acknowledges() {
    limited(async {
        let (_sandbox, epoch) = Sandbox::ready().await;
        let id = epoch.spawn(&spawn_of("ann", &["sh", "-c", "head -c 3000000 /dev/zero; echo end >&2"])).await.unwrap();
        let ring = holm_wire::guest_api::RING_BYTES as u64;
        loop {
            let status: holm_wire::guest_api::ProcessStatus =
                epoch.client.json(Method::GET, &format!("/processes/{id}"), None::<&()>).await.unwrap();
            assert!(status.output_bytes <= ring && status.exit.is_none(), "{status:?}");
            if status.output_bytes == ring {
                break;
            }
        }
        let told = epoch.read(id, 0, u64::MAX).await;
        assert_eq!((told.stdout.len(), told.errors().as_str()), (3_000_000, "end\n"));
    })
    .await;
}

#[tokio::test]
async fn feeds_standard_input_and_sends_signals() {
    limited(async {
        let (_sandbox, epoch) = Sandbox::ready().await;
        let mut cat =
            spawn_of("ann", &["sh", "-c", "trap 'exit 5' TERM; cat; echo waiting; while :; do sleep 0.05; done"]);
        cat.stdin = true;
        let id = epoch.spawn(&cat).await.unwrap();
        let (mut body, answered) = epoch.client.upload(&format!("/processes/{id}/stdin")).await.unwrap();
        body.send(vec![b'x'; 200_000].into()).await.unwrap();
        body.finish().unwrap();
        let reading = epoch.read(id, 0, 200_008);
        let (told, answered) = tokio::join!(reading, answered);
        answered.unwrap();
        assert_eq!(told.stdout.len(), 200_008);
        epoch.signal(id, libc::SIGTERM, true).await;
        assert_eq!(epoch.wait(id).await, Exit::Code(5));
    })
    .await;
}

#[tokio::test]
async fn output_goes_on_in_the_next_epoch_at_its_offset() {
    limited(async {
        let (mut sandbox, first) = Sandbox::ready().await;
        let script = "echo one; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo two; sleep 1000";
        let id = first.spawn(&spawn_of("root", &["sh", "-c", script])).await.unwrap();
        assert_eq!(first.read(id, 0, 4).await.text(), "one\n");
        // A reader that is under way when the wire falls silent.
        let mut hanging = first.client.download(&format!("/processes/{id}/output?from=4")).await.unwrap();
        first.post("/quiesce").await;
        assert!(hanging.next().await.is_err(), "the stream is broken off, not ended");
        first.shut().await;
        // What an older epoch left in the channel is dropped.
        use std::io::Write;
        sandbox.lanes[0].set_nonblocking(false).unwrap();
        sandbox.lanes[0].write_all(&[0xf5; 500]).unwrap();
        let second = sandbox.epoch(1).await;
        let go = second.spawn(&spawn_of("root", &["touch", "/tmp/go"])).await.unwrap();
        assert_eq!(second.wait(go).await, Exit::Code(0));
        assert_eq!(second.read(id, 4, 8).await.text(), "two\n");
        second.post("/goodbye").await;
        assert_eq!(sandbox.wait(), Some(0), "the guest ends after goodbye");
    })
    .await;
}

#[tokio::test]
async fn tells_of_refused_connections_and_names() {
    limited(async {
        let (_sandbox, mut epoch) = Sandbox::ready().await;
        let script = r#"
import socket, sys
for family, address in [(socket.AF_INET, ("93.184.216.34", 443)), (socket.AF_INET6, ("2001:db8::1", 80))]:
    try: socket.socket(family).connect(address); sys.exit("connected")
    except ConnectionRefusedError: pass
server = socket.socket(); server.bind(("127.0.0.1", 80)); server.listen()
socket.create_connection(("127.0.0.1", 80)).close()
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 123))
try: socket.getaddrinfo("registry.example", 443); sys.exit("resolved")
except socket.gaierror: pass
"#;
        let (exit, told) = epoch.run(&main_of("ann", &["python3", "-c", script])).await;
        assert_eq!(exit, Exit::Code(0), "{}", told.errors());
        let mut seen = Vec::new();
        while let Ok(refused) = epoch.refused.try_recv() {
            seen.push(format!("{} {} {}", refused.protocol, refused.host, refused.port));
        }
        seen.sort();
        seen.dedup();
        let expected = ["dns registry.example 0", "tcp 2001:db8::1 80", "tcp 93.184.216.34 443", "udp 192.0.2.1 123"];
        assert_eq!(seen, expected, "all are told before the output ends");
    })
    .await;
}

#[tokio::test]
async fn hands_out_the_result_and_the_changes() {
    limited(async {
        let (_sandbox, epoch) = Sandbox::ready().await;
        let (status, _) = epoch.client.bytes(Method::GET, "/result", None::<&()>).await.unwrap();
        assert_eq!(status, StatusCode::NO_CONTENT);
        let long = "n".repeat(150);
        let script = format!(
            "echo '{{\"ok\":1}}' > /run/holm/result.json; cd /work; rm gone; rm -r replaced; mkdir replaced; \
             echo new > replaced/new; ln -s /etc/shadow link; echo x > {long}; chmod 4755 {long}; mkfifo fifo; \
             python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")'; echo x > .wh.kept; \
             head -c 200000 /dev/zero > big; ln big also; ln big {long}2; ln -s big soft; ln soft softer"
        );
        let (exit, told) = epoch.run(&spawn_of("root", &["sh", "-c", &script])).await;
        assert_eq!(exit, Exit::Code(0), "{}", told.errors());
        let (_, result) = epoch.client.bytes(Method::GET, "/result", None::<&()>).await.unwrap();
        assert_eq!(result, "{\"ok\":1}\n");
        let mut body = epoch.client.download("/changes?bytes_max=300000").await.unwrap();
        let mut archive_bytes = Vec::new();
        while let Some(piece) = body.next().await.unwrap() {
            archive_bytes.extend_from_slice(&piece);
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("changes.tar");
        std::fs::write(&file, &archive_bytes).unwrap();
        let listing = std::process::Command::new("tar").arg("-tvf").arg(&file).output().unwrap();
        assert!(listing.status.success(), "{}", String::from_utf8_lossy(&listing.stderr));
        let listing = String::from_utf8(listing.stdout).unwrap();
        let line =
            |end: &str| listing.lines().find(|line| line.ends_with(end)).unwrap_or_else(|| panic!("{end}: {listing}"));
        assert!(line(&long).starts_with("-rwsr-xr-x"), "whoever takes it is to see the bit: {listing}");
        assert!(line(" link -> /etc/shadow").starts_with('l'));
        let deleted = line(" gone");
        assert!(deleted.starts_with('c') && deleted.contains(" 0,0 "), "{listing}");
        assert!(line(" .wh.kept").starts_with("-rw"), "a file may have any name: {listing}");
        assert!(archive_bytes.windows(40).any(|bytes| bytes.ends_with(b"user.overlay.opaque=y\n")), "{listing}");
        line(" replaced/");
        line(" replaced/new");
        let is_file = |line: &&str| line.starts_with('-') && line.contains(" 200000 ");
        let file = listing.lines().find(is_file).unwrap_or_else(|| panic!("{listing}"));
        assert!(file.contains(" 0/0 "), "{listing}");
        let first = file.rsplit(' ').next().unwrap();
        let others = listing.lines().filter(|line| line.ends_with(&format!(" link to {first}"))).count();
        assert_eq!((others, listing.lines().filter(is_file).count()), (2, 1), "its bytes are there once: {listing}");
        assert!(line(" soft -> big").starts_with('l') && line(" softer -> big").starts_with('l'), "{listing}");
        assert!(line(" fifo").starts_with('p') && listing.contains(" sock"), "{listing}");
    })
    .await;
}

#[tokio::test]
async fn changes_that_are_too_long_are_refused_before_they_are_sent() {
    limited(async {
        let (_sandbox, epoch) = Sandbox::ready().await;
        let script = "cd /work; echo small > small; mkdir d; truncate -s 1900G d/holes";
        let (exit, told) = epoch.run(&spawn_of("root", &["sh", "-c", script])).await;
        assert_eq!(exit, Exit::Code(0), "{}", told.errors());
        let refused = async |bytes_max: &str| match epoch.client.download(&format!("/changes{bytes_max}")).await {
            Err(http2::Error::Status { status, body }) => {
                (status, serde_json::from_slice::<Failure>(&body).unwrap().message)
            }
            other => panic!("{:?}", other.map(drop)),
        };
        let (status, why) = refused("?bytes_max=4294967296").await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{why}");
        let sentence = "they take more than 4294967296 bytes as an archive; the largest file seen, `d/holes`, has \
                        2040109465600 bytes and occupies 0: it is sparse, and holes are written out";
        assert_eq!(why, sentence);
        assert_eq!(refused("").await.0, StatusCode::BAD_REQUEST);
        let (exit, _) = epoch.run(&spawn_of("root", &["rm", "/work/d/holes"])).await;
        assert_eq!(exit, Exit::Code(0));
        let mut body = epoch.client.download("/changes?bytes_max=100000").await.unwrap();
        let mut length = 0;
        while let Some(piece) = body.next().await.unwrap() {
            length += piece.len();
        }
        drop(epoch.client.download(&format!("/changes?bytes_max={length}")).await.unwrap());
        let (status, why) = refused(&format!("?bytes_max={}", length - 1)).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "what is measured is what is sent: {why}");
        let script = "cd /work; rm small; for i in 1 2 3 4 5 6 7 8; do : > empty$i; done";
        let (exit, _) = epoch.run(&spawn_of("root", &["sh", "-c", script])).await;
        assert_eq!(exit, Exit::Code(0));
        let (_, why) = refused("?bytes_max=4096").await;
        assert_eq!(why, "they take more than 4096 bytes as an archive", "there is no largest file");
        let script = "cd /work; i=0; while [ $i -lt 257 ]; do mkdir d && cd d || exit; i=$((i+1)); done";
        let (exit, told) = epoch.run(&spawn_of("root", &["sh", "-c", &format!("rm -r /work/d; {script}")])).await;
        assert_eq!(exit, Exit::Code(0), "{}", told.errors());
        let (status, why) = refused("?bytes_max=4294967296").await;
        assert_eq!((status, why), (StatusCode::UNPROCESSABLE_ENTITY, format!("{CHANGES_TOO_DEEP} 256")));
    })
    .await;
}

#[tokio::test]
async fn the_result_is_found_whatever_becomes_of_the_folders_above_it() {
    limited(async {
        let (_sandbox, epoch) = Sandbox::ready().await;
        let script = "set -e; mv /run /elsewhere; ln -s elsewhere /run; echo 1 > /run/holm/result.json; \
                      ls -A /layers; stat -c '%a %u' /run/holm";
        let (exit, told) = epoch.run(&spawn_of("root", &["sh", "-c", script])).await;
        assert_eq!((exit, told.text().as_str()), (Exit::Code(0), "1777 0\n"), "{}", told.errors());
        let (_, result) = epoch.client.bytes(Method::GET, "/result", None::<&()>).await.unwrap();
        assert_eq!(result, "1\n");
    })
    .await;
}

#[tokio::test]
async fn a_result_that_is_no_file_is_refused() {
    limited(async {
        for (make, why) in [
            ("ln -s /etc/passwd", "it is a symbolic link"),
            ("mkfifo", "it is no regular file"),
            ("mkdir", "it is no regular file"),
            ("head -c 70000 /dev/zero | tee", "it is larger than 65536 bytes"),
        ] {
            let (_sandbox, epoch) = Sandbox::ready().await;
            let script = format!("{make} /run/holm/result.json > /dev/null");
            let (exit, told) = epoch.run(&spawn_of("ann", &["sh", "-c", &script])).await;
            assert_eq!(exit, Exit::Code(0), "{}", told.errors());
            let answer = epoch.client.bytes(Method::GET, "/result", None::<&()>).await;
            let Err(http2::Error::Status { status, body }) = answer else { panic!("{make}: {answer:?}") };
            let failure: Failure = serde_json::from_slice(&body).unwrap();
            assert_eq!((status, failure.message.as_str()), (StatusCode::UNPROCESSABLE_ENTITY, why), "{make}");
        }
    })
    .await;
}

#[tokio::test]
async fn nothing_gets_out_as_root_or_as_a_user() {
    limited(async {
        let (_sandbox, epoch) = Sandbox::ready().await;
        for user in ["root", "ann"] {
            let (exit, told) = epoch.run(&spawn_of(user, &["python3", "-c", include_str!("escape.py")])).await;
            assert_eq!((exit, told.text().trim()), (Exit::Code(0), "sealed"), "{user}: {}", told.errors());
        }
    })
    .await;
}

#[tokio::test]
async fn another_instruction_set_is_killed() {
    limited(async {
        let (_sandbox, epoch) = Sandbox::ready().await;
        // mov eax, 20; int 0x80; ret: getpid as a 32-bit program would call it.
        let script = "import ctypes, mmap; m = mmap.mmap(-1, 4096, prot=7); m.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3'); \
                      ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))(); print('lived')";
        let (exit, told) = epoch.run(&spawn_of("ann", &["python3", "-c", script])).await;
        assert_eq!((exit, told.text().as_str()), (Exit::Signal(libc::SIGSYS as u8), ""), "{}", told.errors());
    })
    .await;
}

#[tokio::test]
async fn sudo_gains_privileges_only_where_the_image_asks_for_it() {
    limited(async {
        for (allow_sudo, expected) in [(false, "1000\n"), (true, "0\n")] {
            let (_sandbox, epoch) = Sandbox::ready_with(allow_sudo, false).await;
            // A setuid program of the sandbox's own root. /tmp of this sandbox is nosuid, a fresh tmpfs as /ro is not.
            let make = "cp /usr/bin/python3 /work/suid && chmod 4755 /work/suid";
            let (exit, told) = epoch.run(&spawn_of("root", &["sh", "-c", make])).await;
            assert_eq!(exit, Exit::Code(0), "{}", told.errors());
            let show = "import os; print(os.geteuid())";
            let (exit, told) = epoch.run(&spawn_of("ann", &["/work/suid", "-c", show])).await;
            assert_eq!((exit, told.text().as_str()), (Exit::Code(0), expected), "{}", told.errors());
        }
    })
    .await;
}

#[tokio::test]
async fn where_the_host_can_be_written_to_no_file_gets_power() {
    const ATTEMPTS: &str = r#"
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    ctypes.set_errno(0)
    result = libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    return errno.errorcode.get(ctypes.get_errno(), "OK") if result < 0 else "OK"
os.chdir("/work"); os.umask(0); os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o755))
f = os.open("f", os.O_RDWR)
making, here = os.O_CREAT | os.O_WRONLY, -100
for bits in (0o4755, 0o2755, 0o6755):
    how = (ctypes.c_uint64 * 3)(making, bits, 0)
    tried = [
        ("chmod", 90, b"f", bits), ("fchmod", 91, f, bits), ("fchmodat", 268, here, b"f", bits),
        ("fchmodat2", 452, here, b"f", bits, 0), ("open", 2, b"o", making, bits), ("openat", 257, here, b"p", making, bits),
        ("tmpfile", 257, here, b".", os.O_TMPFILE | os.O_RDWR, bits), ("creat", 85, b"q", bits),
        ("mknod", 133, b"r", 0o100000 | bits, 0), ("mknodat", 259, here, b"s", 0o100000 | bits, 0),
        ("openat2", 437, here, b"t", how, 24),
    ]
    for name, *args in tried:
        result = call(*args)
        if result not in ("EPERM", "ENOSYS"):
            print(name, oct(bits), result)
capability = bytes.fromhex("0000000200200000000000000000000000000000")
try: os.setxattr("f", "security.capability", capability); print("setcap")
except PermissionError: pass
for name in os.listdir("."):
    if os.lstat(name).st_mode & 0o6000: print("set-id:", name)
# What ordinary programs do goes on.
os.chmod("f", 0o700); os.mkdir("d", 0o755); os.close(os.open("u", making, 0o644)); open("f").close()
print("done")
"#;
    limited(async {
        for (allow_sudo, user) in [(false, "root"), (true, "root"), (false, "ann")] {
            let (_sandbox, epoch) = Sandbox::ready_with(allow_sudo, true).await;
            epoch.spawn(&spawn_of("root", &["sleep", "1000"])).await.unwrap();
            let (exit, _) = epoch.run(&spawn_of("root", &["chmod", "777", "/work"])).await;
            assert_eq!(exit, Exit::Code(0));
            let (exit, told) = epoch.run(&spawn_of(user, &["python3", "-c", ATTEMPTS])).await;
            assert_eq!((exit, told.text().as_str()), (Exit::Code(0), "done\n"), "{user}: {}", told.errors());
        }
    })
    .await;
}

#[tokio::test]
async fn no_id_of_a_sandbox_is_one_of_the_host() {
    limited(async {
        let (sandbox, epoch) = Sandbox::ready().await;
        for (user, uid) in [("root", sandbox.base_uid + 65_536), ("ann", sandbox.base_uid + 65_536 + 1000)] {
            epoch.spawn(&spawn_of(user, &["sleep", "1000"])).await.unwrap();
            let status = format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n");
            let found = std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
                std::fs::read_to_string(entry.path().join("status")).is_ok_and(|text| text.contains(&status))
            });
            assert!(found, "{user} is {uid} on the host");
        }
    })
    .await;
}

#[tokio::test]
async fn setup_is_done_once_and_before_all_else() {
    limited(async {
        let sandbox = Sandbox::start();
        let epoch = sandbox.epoch(0).await;
        let status_of = |answer: Result<(StatusCode, bytes::Bytes), http2::Error>| match answer {
            Err(http2::Error::Status { status, .. }) => status,
            other => panic!("{other:?}"),
        };
        let early = epoch.client.bytes(Method::POST, "/processes", Some(&spawn_of("root", &["true"]))).await;
        assert_eq!(status_of(early), StatusCode::CONFLICT);
        let nonsense = epoch.client.bytes(Method::POST, "/setup", Some(&"nonsense")).await;
        assert_eq!(status_of(nonsense), StatusCode::BAD_REQUEST);
        let huge = epoch.client.bytes(Method::POST, "/setup", Some(&"x".repeat(2_000_000))).await;
        assert_eq!(status_of(huge), StatusCode::PAYLOAD_TOO_LARGE);
        let nowhere = epoch.client.bytes(Method::GET, "/nothing", None::<&()>).await;
        assert_eq!(status_of(nowhere), StatusCode::NOT_FOUND);
        for path in ["/processes/9", "/processes/x", "/processes/9/output?from=0"] {
            let missing = epoch.client.bytes(Method::GET, path, None::<&()>).await;
            assert_eq!(status_of(missing), StatusCode::NOT_FOUND, "{path}");
        }
    })
    .await;
}
