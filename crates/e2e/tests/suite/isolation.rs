//! What a workload sees: no network, no environment of the host, an identity of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
};

use holm_e2e::{World, eventually, host, probe, ran::run, unique};

#[test]
fn what_was_refused_is_told_while_output_flows() {
    let world = World::up();
    let program = r#"
import socket, time
for n in range(6000):
    print(n, flush=True)
    if n == 100:
        try:
            socket.create_connection(("192.0.2.7", 8443))
        except OSError:
            pass
    time.sleep(0.01)
"#;
    let run = world.detach(["--", "/usr/bin/python3", "-c", program]);
    eventually("the event", || Some(world.events_of(&run, "egress_refused")).filter(|found| !found.is_empty()));
    assert_eq!(world.show(&run)["state"], "running", "it was told before the end");
    world.holm(["cancel", "--kill", &run]).succeeds();
    world.until_ended(&run);
}

#[test]
fn connections_fail_at_once_and_the_run_says_what_was_refused() {
    let world = World::up();
    let body = r#"
def connect(family, address):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.settimeout(30)
    s.connect(address)
attempt("tcp4", lambda: connect(socket.AF_INET, ("192.0.2.7", 8443)))
attempt("tcp6", lambda: connect(socket.AF_INET6, ("2001:db8::7", 8443)))
attempt("metadata", lambda: connect(socket.AF_INET, ("169.254.169.254", 80)))
try:
    socket.getaddrinfo("refused.example", 443)
except socket.gaierror as error:
    print("name refused", "EAI", flush=True)
"#;
    let mut attempts = probe::Attempts::of(world.run(["--", "/usr/bin/python3", "-c", &probe::program(body)]));
    for name in ["tcp4", "tcp6", "metadata"] {
        // Refused by an answer, not by a time-out: nothing may wait for what is not there.
        attempts.refused(name, &["ECONNREFUSED"]);
    }
    attempts.refused("name", &["EAI"]);
    attempts.no_more();
    let id = world.newest();
    let wanted: BTreeSet<_> = [
        ("192.0.2.7", 8443, "tcp"),
        ("2001:db8::7", 8443, "tcp"),
        ("169.254.169.254", 80, "tcp"),
        ("refused.example", 0, "dns"),
    ]
    .map(|(host, port, protocol)| (host.to_owned(), port, protocol.to_owned()))
    .into();
    let told: BTreeSet<_> = world
        .events_of(&id, "egress_refused")
        .iter()
        .map(|event| {
            let text = |name: &str| event[name].as_str().unwrap_or_default().trim_end_matches('.').to_owned();
            (text("host"), event["port"].as_u64().unwrap_or_default(), text("protocol"))
        })
        .collect();
    assert_eq!(told, wanted, "events of a run that has ended are complete");
}

#[test]
fn there_is_a_loopback_and_nothing_else() {
    let world = World::up();
    let interfaces = world.run(["--", "cat", "/proc/net/dev"]).succeeds();
    let names: Vec<&str> = interfaces.text().lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    assert_eq!(names, ["lo"]);
    let script = "import socket\ns = socket.create_server(('127.0.0.1', 80))\n\
                  c = socket.create_connection(('127.0.0.1', 80))\nc.send(b'inside')\nprint(s.accept()[0].recv(6).decode())";
    assert_eq!(world.run(["--", "/usr/bin/python3", "-c", script]).succeeds().text(), "inside\n");
}

#[test]
fn nothing_of_the_hosts_environment_comes_in() {
    let world = World::up();
    let secret = unique("canary");
    let mut command = world.command();
    command.args(["run", "--env", "WANTED=yes", "--", "env"]).env("HOST_SECRET", &secret);
    let ran = run(&mut command).succeeds();
    assert!(!ran.text().contains(&secret), "{ran}");
    let names: BTreeSet<&str> = ran.text().lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    let allowed: BTreeSet<&str> = [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "TERM",
        "HOSTNAME",
        "PWD",
        "WANTED",
        "HOLM_RUN_ID",
        "HOLM_RESULT",
    ]
    .into();
    let extra: Vec<&&str> = names.difference(&allowed).collect();
    assert!(extra.is_empty() && names.contains("WANTED") && names.contains("PATH"), "{extra:?} in {names:?}");
}

/// The fields of the workload's own `/proc/self/status`.
fn status(world: &World, user: &str) -> BTreeMap<String, String> {
    let ran = world.run(["--user", user, "--", "cat", "/proc/self/status"]).succeeds();
    let fields = ran.text().lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// Capabilities that no workload has, not even its root (capability.h): each opens a way to the kernel or the host.
const NEVER: [(u32, &str); 12] = [
    (2, "dac_read_search"),
    (12, "net_admin"),
    (16, "sys_module"),
    (17, "sys_rawio"),
    (19, "sys_ptrace"),
    (21, "sys_admin"),
    (22, "sys_boot"),
    (24, "sys_resource"),
    (25, "sys_time"),
    (32, "mac_override"),
    (38, "perfmon"),
    (39, "bpf"),
];

#[test]
fn capabilities_seccomp_and_no_new_privs_hold() {
    let world = World::up();
    for user in ["0", "1000:1000"] {
        if user != "0" && !host::is_root() {
            continue; // A plain user has one id to give: other users inside are tested where there are more.
        }
        let status = status(&world, user);
        assert_eq!(status["NoNewPrivs"], "1", "{user}");
        assert_eq!(status["Seccomp"], "2", "{user}: a filter");
        for set in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
            let bits = u64::from_str_radix(&status[set], 16).expect("a set in hexadecimal");
            for (bit, name) in NEVER {
                assert_eq!(bits >> bit & 1, 0, "{user}: {set} has {name}");
            }
            assert!(user == "0" || set == "CapBnd" || bits == 0, "{user}: {set} is {bits:x}");
        }
    }
}

#[test]
fn a_set_id_program_of_an_image_gains_root_inside_where_it_was_allowed() {
    let world = World::up();
    let image = world.folder("image");
    // `cat` with what it loads: an image whose set-user-id program reads what only root inside may.
    let list = run(std::process::Command::new("ldd").arg("/usr/bin/cat")).succeeds();
    let files = list.text().split_whitespace().filter(|word| word.starts_with('/'));
    for file in files.chain(["/usr/bin/cat"]) {
        let copy = image.join(file.trim_start_matches('/'));
        fs::create_dir_all(copy.parent().expect("a folder")).expect("a folder");
        fs::copy(file, &copy).expect("a copy");
    }
    let mode = |path: &str, mode| {
        fs::set_permissions(image.join(path), fs::Permissions::from_mode(mode)).expect("a mode");
    };
    mode("usr/bin/cat", 0o4755);
    fs::write(image.join("closed"), "for root inside\n").expect("a file");
    mode("closed", 0o600);
    let root = format!("dir:{}", image.display());
    let cat = |arguments: &[&str], file: &str| {
        let arguments = arguments.iter().copied().chain(["--root", &root, "--", "/usr/bin/cat", file]);
        world.run(arguments)
    };
    if !host::is_root() {
        // A plain user has one id to give: there is nobody inside who could gain root, and root gains nothing.
        let ran = cat(&["--allow-sudo"], "/proc/self/status").succeeds();
        assert_eq!(host::field_of(ran.text(), "Uid").as_deref(), Some("0\t0\t0\t0"), "{ran}");
        cat(&["--allow-sudo", "--user", "1000"], "/closed").exits(125);
        return;
    }
    let user = ["--user", "1000:1000"];
    let allowed = ["--user", "1000:1000", "--allow-sudo"];
    assert_eq!(cat(&allowed, "/closed").succeeds().text(), "for root inside\n");
    let ran = cat(&allowed, "/proc/self/status").succeeds();
    assert_eq!(host::field_of(ran.text(), "Uid").as_deref(), Some("1000\t0\t0\t0"), "{ran}");
    let bounding = u64::from_str_radix(&host::field_of(ran.text(), "CapBnd").expect("a set"), 16).expect("a set");
    let effective = u64::from_str_radix(&host::field_of(ran.text(), "CapEff").expect("a set"), 16).expect("a set");
    assert_eq!(effective & !bounding, 0, "{ran}");
    for (bit, name) in NEVER {
        assert_eq!(effective >> bit & 1, 0, "root that was gained has {name}: {ran}");
    }
    cat(&user, "/closed").exits(1).complains_of(&["Permission denied"]);
}

#[test]
fn each_sandbox_has_an_identity_of_its_own_that_is_not_root() {
    let world = World::up();
    let words = [unique("86396"), unique("86396")];
    let ids: Vec<String> =
        words.iter().map(|word| world.detach(["--", "bash", "-c", &format!("exec -a {word} sleep 86396")])).collect();
    let uids: Vec<u32> = words
        .iter()
        .map(|word| {
            let pid = eventually("the command runs", || host::find(word).first().copied());
            host::uid(pid).expect("the process is there")
        })
        .collect();
    assert!(!uids.contains(&0), "{uids:?}");
    if host::is_root() {
        assert_ne!(uids[0], uids[1], "two sandboxes share an id");
    } else {
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(uids, [own, own], "a plain user has no other id to give");
    }
    for id in ids {
        world.holm(["cancel", "--kill", &id]).succeeds();
        world.until_ended(&id);
    }
}

#[test]
fn the_shim_has_no_privileges_and_an_id_that_is_not_the_workloads() {
    let world = World::up();
    let word = unique("86395");
    let id = world.detach(["--", "bash", "-c", &format!("exec -a {word} sleep 86395")]);
    let workload = eventually("the command runs", || host::find(&word).first().copied());
    let shims: Vec<u32> =
        host::find(&id).into_iter().filter(|pid| host::command_line(*pid).contains(" shim ")).collect();
    let &[shim] = shims.as_slice() else { panic!("one shim was expected: {shims:?}") };
    for set in ["CapEff", "CapPrm", "CapAmb"] {
        assert_eq!(host::status_field(shim, set).as_deref(), Some("0000000000000000"), "{set} of the shim");
    }
    let is = |field: &str, value: &str| host::status_field(shim, field).as_deref() == Some(value);
    assert!(is("NoNewPrivs", "1") && is("Seccomp", "2"), "a shim that has its sandbox executes nothing more");
    if host::is_root() {
        assert_ne!(host::uid(shim), Some(0));
        assert_ne!(host::uid(shim), host::uid(workload), "who escapes to the workload's id must not reach the shim");
    }
    world.holm(["cancel", "--kill", &id]).succeeds();
    world.until_ended(&id);
}
