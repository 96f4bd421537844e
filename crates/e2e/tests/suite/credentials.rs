//! Credentials of runs: used by programs inside, and to be found nowhere that these can look, nor in what carries them.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use holm_e2e::{
    World, eventually,
    host::{command_line, executable, is_root},
    leftovers::Marks,
    ran::run,
};

use crate::site::{EVIL, SITE, Site, apart, forms, names};

const SECRET: &str = "geheim-5b81e0-of-the-canary";
/// How much of memory is read at once; the ends of two pieces overlap.
const PIECE: usize = 1 << 20;

/// Keeps a secret for the site.
fn keep(world: &World, site: &Site, name: &str, value: &str) {
    let file = world.dir().join("value");
    fs::write(&file, value).expect("a file");
    let (bound, from) = (format!("{SITE}:{}", site.port), file.display().to_string());
    world.holm(["secret", "set", name, "--for", &bound, "--from-file", &from]).succeeds();
    fs::remove_file(file).expect("it is there");
}

/// In which forms a secret stands in some bytes.
fn found_in(bytes: &[u8]) -> BTreeSet<&'static str> {
    found(bytes, &forms(SECRET))
}

fn found(bytes: &[u8], forms: &[(&'static str, String)]) -> BTreeSet<&'static str> {
    let is_in = |form: &str| {
        let first = form.as_bytes()[0];
        let mut from = 0;
        while let Some(at) = bytes[from..].iter().position(|byte| *byte == first) {
            if bytes[from + at..].starts_with(form.as_bytes()) {
                return true;
            }
            from += at + 1;
        }
        false
    };
    forms.iter().filter(|(_, form)| is_in(form)).map(|(name, _)| *name).collect()
}

/// What a file has; nothing where it has gone.
fn contents(file: &Path) -> Vec<u8> {
    match fs::read(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        read => read.unwrap_or_else(|error| panic!("{}: {error}", file.display())),
    }
}

/// Which forms stand in the memory of a process; how many bytes were read.
fn found_in_memory(pid: u32, forms: &[(&'static str, String)]) -> (BTreeSet<&'static str>, usize) {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let Ok(memory) = File::open(format!("/proc/{pid}/mem")) else { return (BTreeSet::new(), 0) };
    let (mut all, mut read) = (BTreeSet::new(), 0);
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with('r'))) {
        let (from, to) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let address = |text: &str| u64::from_str_radix(text, 16).expect("an address");
        let (mut from, to) = (address(from), address(to));
        while from < to {
            let mut bytes = vec![0; PIECE.min((to - from) as usize)];
            // Some parts belong to the kernel.
            let Ok(count) = memory.read_at(&mut bytes, from) else { break };
            all.extend(found(&bytes[..count], forms));
            read += count;
            from += if count == PIECE { PIECE as u64 - 1_024 } else { count.max(1) as u64 };
        }
    }
    (all, read)
}

/// All files below a folder, without what it mounts elsewhere.
fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path(), files),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
}

/// What a program inside does that wants to know: it keeps all that it hears, in memory and in a file.
const CURIOUS: &str = r#"
import http.client, os, ssl, sys, time
host, port = sys.argv[1], int(sys.argv[2])
kept = []
for path in ["/reflect", "/reflect?again", "/elsewhere", "/big"]:
    asked = http.client.HTTPSConnection(host, port, context=ssl.create_default_context())
    asked.request("GET", path, headers={"authorization": "Bearer " + os.environ["API_KEY"]})
    answer = asked.getresponse()
    kept += [str(answer.status), str(answer.headers), answer.read().decode("latin-1")[:100_000]]
open("/tmp/kept", "w").write("\n".join(kept))
open("/dev/shm/kept", "w").write("\n".join(kept))
print("\n".join(kept[:6]), flush=True)
print("heard all", flush=True)
time.sleep(600)
"#;

#[test]
fn a_secret_is_used_and_is_nowhere_inside_nor_on_its_way() {
    let names = names();
    let (world, site) = apart(&names);
    keep(&world, &site, "KEY", SECRET);
    let port = site.port.to_string();
    let credential = format!("{SITE}:{port}=bearer:KEY");
    let run = world.detach([
        "--credential",
        &credential,
        "--placeholder",
        "API_KEY=KEY",
        "--",
        "/usr/bin/python3",
        "-c",
        CURIOUS,
        SITE,
        &port,
    ]);
    let logged = eventually("what it heard", || {
        let logs = world.logs(&run);
        logs.text().contains("heard all").then(|| logs.text().to_owned())
    });
    assert!(logged.contains(&"*".repeat(SECRET.len())), "{logged}");
    assert_eq!(site.heard().matches(&format!("authorization: bearer {SECRET}")).count(), 4);
    assert_eq!(found_in(logged.as_bytes()), BTreeSet::new());
    assert!(!site.wire().contains(SECRET));

    let processes = Marks { runs: vec![run.clone()], ..world.marks() }.processes();
    let is_ours = |pid: u32| executable(pid).is_some_and(|path| path.starts_with(world.dir()));
    let inside: Vec<u32> = processes.iter().copied().filter(|pid| !is_ours(*pid)).collect();
    let shim: Vec<u32> = processes.iter().copied().filter(|pid| command_line(*pid).contains(" shim ")).collect();
    if is_root() {
        assert!(inside.len() >= 3, "the guest, and what is beside the program: {inside:?}");
        assert!(inside.iter().any(|pid| command_line(*pid).contains("python3")), "{inside:?}");
        // Where it must be it is found.
        assert!(found_in_memory(shim[0], &forms(SECRET)).0.contains("plain"), "{shim:?}");
        for pid in inside {
            let (found, read) = found_in_memory(pid, &forms(SECRET));
            assert!(found.is_empty() && read > 100_000, "{} has it as {found:?}, {read} bytes", command_line(pid));
            for name in ["environ", "cmdline"] {
                let bytes = fs::read(format!("/proc/{pid}/{name}")).expect("a file");
                assert_eq!(found_in(&bytes), BTreeSet::new(), "{name} of {}", command_line(pid));
            }
        }
        let python =
            *processes.iter().find(|pid| command_line(**pid).starts_with("/usr/bin/python3")).expect("the program");
        let root = PathBuf::from(format!("/proc/{python}/root"));
        let mut files = Vec::new();
        for folder in ["tmp", "run", "dev/shm", "root", "etc", "var/tmp"] {
            walk(&root.join(folder), &mut files);
        }
        assert!(files.contains(&root.join("tmp/kept")), "{files:?}");
        for file in files {
            assert_eq!(found_in(&contents(&file)), BTreeSet::new(), "{}", file.display());
        }
        // The agent carried it, and cannot read it. What it does know of the run is found there.
        let (found, read) = found_in_memory(world.agent_pid("host"), &forms(SECRET));
        assert!(found.is_empty() && read > 1_000_000, "the agent has it as {found:?}, {read} bytes");
        let known = [("run", run.clone())];
        assert!(found_in_memory(world.agent_pid("host"), &known).0.contains("run"));
    }
    // The journal, the spool, the events, the database and what else there is.
    let mut files = Vec::new();
    walk(world.dir(), &mut files);
    let journal = |file: &&PathBuf| file.to_string_lossy().contains(&format!("agent/runs/{run}"));
    assert!(files.iter().filter(journal).count() > 3, "{files:?}");
    for file in files.iter().filter(|file| !file.ends_with("holm")) {
        assert_eq!(found_in(&contents(file)), BTreeSet::new(), "{}", file.display());
    }
    let said = [world.show(&run).to_string(), format!("{:?}", world.events(&run)), world.all_said("host")];
    for text in said {
        assert_eq!(found_in(text.as_bytes()), BTreeSet::new(), "{text}");
    }
    world.holm(["cancel", "--kill", &run]).succeeds();
    world.until_ended(&run);
}

/// What an agent does for secrets alone whose trace outlives it.
pub const STEPS_OF_SECRETS: [&str; 1] = ["secrets.ask"];

/// The shim lives on and asks whoever comes next.
#[test]
fn an_agent_that_dies_while_it_asks_is_followed_by_one_that_is_given_them() {
    let mut world = World::with_server();
    let file = world.dir().join("value");
    fs::write(&file, SECRET).expect("a file");
    let file = file.display().to_string();
    world.holm(["secret", "set", "KEY", "--for", "api.example.org", "--from-file", &file]).succeeds();
    let dir = world.folder("crash");
    for point in STEPS_OF_SECRETS.iter().flat_map(|step| ["before", "after"].map(|side| format!("{side} {step}"))) {
        let (name, armed) = (point.replace([' ', '.'], "-"), dir.join("armed"));
        fs::write(&armed, "").expect("a file");
        world.launch_agent(&name, &[("HOLM_CRASH_AT", PathBuf::from(&point)), ("HOLM_CRASH_ARMED", armed)]);
        let run = world.detach(["--credential", "api.example.org=bearer:KEY", "--", "echo", &point]);
        world.agent_is_killed(&name);
        world.start_agent(&name);
        let ended = world.until_ended(&run);
        assert_eq!(ended["outcome"]["kind"], "succeeded", "{point}: {ended}");
        assert_eq!(world.logs(&run).text(), format!("{point}\n"));
        world.stop_agent(&name);
    }
}

/// What a run asks the site for with a credential.
fn asks(world: &World, site: &Site, flags: &[&str]) -> holm_e2e::ran::Ran {
    let url = format!("https://{SITE}:{}/open", site.port);
    world.run(flags.iter().copied().chain(["--", "curl", "--silent", "--show-error", &url]))
}

#[test]
fn the_newest_value_is_brought_and_a_secret_that_is_not_there_is_named() {
    let names = names();
    let (world, site) = apart(&names);
    let credential = format!("{SITE}:{}=bearer:KEY", site.port);
    let flags = ["--credential", &credential];
    let refused = asks(&world, &site, &flags).exits(125);
    refused.complains_of(&["--credential", "`KEY`", "holm secret set KEY"]);
    keep(&world, &site, "KEY", SECRET);
    asks(&world, &site, &flags).succeeds();
    let file = world.dir().join("value");
    fs::write(&file, "geheim-neu-of-the-canary").expect("a file");
    world.holm(["secret", "rotate", "KEY", "--from-file", &file.display().to_string()]).succeeds();
    asks(&world, &site, &flags).succeeds();
    let heard = site.heard();
    assert_eq!((heard.matches(SECRET).count(), heard.matches("geheim-neu").count()), (1, 1), "{heard}");
    // It waits for a host, and is not there any more when one takes it.
    let credential = ["--credential", &credential];
    let run = world.detach(credential.iter().copied().chain(["--on", "zone=later", "--", "true"]));
    world.holm(["secret", "rm", "KEY"]).succeeds();
    let mut world = world;
    let flags = crate::site::reaching(&names, &site);
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--host-label", "zone=later"]).collect();
    world.start_agent_with("later", &flags);
    let ended = world.until_ended(&run);
    assert_eq!(ended["outcome"]["reason"], "launch_failed", "{ended}");
    let message = ended["outcome"]["message"].as_str().expect("a message");
    assert!(message.contains("`KEY`") && message.contains("holm secret set KEY"), "{message}");
}

/// Whoever may run something names the hosts; to which of them a secret goes is said by who keeps it.
#[test]
fn a_member_brings_no_secret_to_another_host() {
    let names = names();
    let (world, site) = apart(&names);
    keep(&world, &site, "KEY", SECRET);
    let port = site.port;
    let member = world.holm(["token", "create", "alice"]).succeeds().word();
    let as_member = |arguments: &[&str]| {
        run(world.command().env_remove("HOLM_TOKEN_FILE").env("HOLM_TOKEN", &member).args(arguments))
    };
    let brings = |host: &str| {
        let (credential, url) = (format!("{host}:{port}=bearer:KEY"), format!("https://{host}:{port}/open"));
        let curl = ["--", "curl", "--silent", "--insecure", "--show-error", &url];
        as_member(&[&["run", "--credential", &credential][..], &curl].concat())
    };
    brings(SITE).succeeds();
    assert_eq!(site.heard().matches(SECRET).count(), 1, "{}", site.heard());
    let bound = format!("{SITE}:{port}");
    for refused in [brings(EVIL), brings(&format!("a.{SITE}"))] {
        refused.exits(125).complains_of(&["--credential", "`KEY`", &bound, "holm secret bind KEY --for"]);
    }
    // Nor does he say himself to where it may be brought.
    let evil = format!("{EVIL}:{port}");
    let refused = as_member(&["secret", "bind", "KEY", "--for", &evil]).exits(1);
    refused.complains_of(&["forbidden"]);
    let listed = as_member(&["secret", "ls"]).succeeds();
    assert!(listed.text().contains(&bound), "he sees to where: {listed}");
    assert_eq!(site.heard().matches(SECRET).count(), 1, "{}", site.heard());

    // What waited when it was bound to less fails when a host takes it.
    let on =
        ["run", "--detach", "--on", "zone=later", "--credential", &format!("{SITE}:{port}=bearer:KEY"), "--", "true"];
    let waiting = as_member(&on).succeeds().word();
    assert_eq!(world.holm(["secret", "bind", "KEY", "--for", &evil]).succeeds().text(), format!("{evil}\n"));
    let mut world = world;
    let flags = crate::site::reaching(&names, &site);
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--host-label", "zone=later"]).collect();
    world.start_agent_with("later", &flags);
    let ended = world.until_ended(&waiting);
    assert_eq!(ended["outcome"]["reason"], "launch_failed", "{ended}");
    let message = ended["outcome"]["message"].as_str().expect("a message");
    assert!(message.contains("`KEY`") && message.contains("holm secret bind KEY --for"), "{message}");
}

#[test]
fn a_credential_that_makes_no_sense_is_refused_by_what_is_wrong_with_it() {
    let world = World::up();
    for (credential, words) in [
        ("api.example.org", ["bearer:NAME", "basic:USER:NAME"]),
        ("*.example.org=bearer:KEY", ["bound to one host", "*.example.org"]),
        ("public=bearer:KEY", ["bound to one host", "public"]),
        ("192.0.2.1=bearer:KEY", ["bound to one host", "192.0.2.1"]),
        ("api.example.org=header:host:KEY", ["`host`", "no field"]),
        ("api.example.org=header:x-key:{KEY", ["no value of a field", "{secret}"]),
    ] {
        let refused = world.run(["--credential", credential, "--", "true"]).exits(125);
        refused.complains_of(&["--credential", credential]).complains_of(&words);
    }
    let twice = ["--credential", "api.example.org=bearer:A", "--credential", "api.example.org=basic:u:B", "--", "true"];
    world.run(twice).exits(125).complains_of(&["--credential", "fills the same place"]);
    let other = ["--credential", "api.example.org=bearer:A", "--placeholder", "API_KEY=B", "--", "true"];
    world.run(other).exits(125).complains_of(&["--placeholder", "no credential adds this secret"]);
    world.run(["--placeholder", "API_KEY=A", "--", "true"]).exits(125).complains_of(&["--credential"]);
}
