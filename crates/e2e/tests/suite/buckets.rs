//! Large objects in a bucket of S3: shared by servers, away for a while, refused at the start.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use holm_e2e::{Running, World, eventually, noise, postgres::Postgres};
use rustix::process::Signal;

use crate::s3::{BUCKET, Fault, KEY_ID, PREFIX, S3Server, SECRET};

/// Where the credentials lie, beside the configuration file.
const KEYS: &str = "keys";

/// What the table `[server]` says of that bucket.
fn told(bucket: &S3Server) -> String {
    format!("blobs = \"{}\"\nblobs_credentials = \"{KEYS}\"\n", bucket.place())
}

fn write_keys(world: &World, secret: &str) {
    let path = world.dir().join("config/holm").join(KEYS);
    let text = format!("[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {secret}\n");
    fs::write(&path, text).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
}

/// The objects of the log of a run.
fn objects(bucket: &S3Server, run: &str) -> Vec<PathBuf> {
    let orgs = fs::read_dir(bucket.folder().join("orgs")).into_iter().flatten().flatten();
    let logs = orgs.map(|org| org.path().join("runs").join(run).join("logs"));
    logs.flat_map(|logs| fs::read_dir(logs).into_iter().flatten().flatten()).map(|file| file.path()).collect()
}

/// Another server on the database of the world, under a home of its own.
fn another_server(world: &World) -> (Running, String) {
    let (home, socket) = (world.dir().join("another"), world.dir().join("another.sock"));
    let listen = format!("unix:{}", socket.display());
    let mut command = world.command();
    command.env("HOLM_HOME", home).env("HOLM_ROOT_KEY_FILE", world.home().join("root-key"));
    let server = Running::start(command.args(["server", "--listen", &listen]));
    eventually("the other server answers", || world.holm(["--server", &listen, "ps"]).code.eq(&0).then_some(()));
    (server, listen)
}

#[test]
fn a_log_that_one_server_sealed_is_read_through_another_and_either_may_be_killed() {
    let (postgres, bucket) = (Postgres::start(), S3Server::start());
    let mut world = World::on_database_with(&postgres.url(postgres.port()), &told(&bucket));
    write_keys(&world, SECRET);
    world.start_server();
    world.start_agent("only");
    let lines = 40_000;
    let run = world.detach(noise::command(lines));
    world.until_ended(&run);
    eventually("its log is in the bucket", || Some(objects(&bucket, &run)).filter(|found| !found.is_empty()));
    let folder = world.folder("work");
    fs::write(folder.join("file"), "old").expect("a file");
    let dir = folder.display().to_string();
    world
        .run(["--dir", dir.as_str(), "--write-back", "--", "sh", "-c", "head -c 12000000 /dev/urandom > file"])
        .succeeds();
    assert_eq!(fs::metadata(folder.join("file")).expect("a file").len(), 12_000_000, "changes went up and came down");
    assert!(bucket.asked("PUT", "partNumber=") >= 3, "they went up in parts");
    assert!(!world.home().join("server/blobs").exists(), "nothing is kept in a folder");

    let (other, listen) = another_server(&world);
    let through_the_other = |arguments: &[&str]| world.holm([&["--server", &listen][..], arguments].concat());
    assert!(noise::is_whole(through_the_other(&["logs", &run]).succeeds().text(), lines), "it is another log");
    world.doctor_says(0, &["blobs", &format!("s3://{BUCKET}/{PREFIX} at http://127."), "answers within"]);
    assert_eq!(world.holm(["config", "check"]).exits(0).text().matches("error").count(), 0);

    let token = world.home().join("token").display().to_string();
    world.kill_server();
    let alone =
        |arguments: &[&str]| world.holm([&["--server", &listen, "--token-file", &token][..], arguments].concat());
    assert!(noise::is_whole(alone(&["logs", &run]).succeeds().text(), lines), "it is another log");
    assert!(alone(&["logs", "-n", "1", &run]).succeeds().text().starts_with(&format!("{lines} ")));
    world.start_server();
    let later = world.detach(noise::command(lines));
    world.until_ended(&later);
    other.signal(Signal::KILL);
    let killed = other.wait();
    assert!(noise::is_whole(world.logs(&later).text(), lines), "it is another log");
    world.holm(["rm", &run]).succeeds();
    eventually("its objects are gone", || objects(&bucket, &run).is_empty().then_some(()));
    assert!(!killed.complaint().contains(SECRET), "the log of a server has the secret");
}

#[test]
fn a_bucket_that_is_away_for_a_while_costs_no_line_and_no_run() {
    let mut bucket = S3Server::start();
    let mut world = World::with_config(&told(&bucket), "");
    write_keys(&world, SECRET);
    world.start_up();
    let before = world.detach(noise::command(5_000));
    world.until_ended(&before);
    eventually("its log is sealed", || Some(objects(&bucket, &before)).filter(|found| !found.is_empty()));
    bucket.stop();
    let run = world.detach(noise::command(60_000));
    eventually("its output is refused", || world.up_complains().contains("store a blob").then_some(()));
    assert_eq!(world.run(["--", "echo", "short"]).succeeds().text(), "short\n", "what needs no object goes on");
    assert_ne!(world.show(&run)["state"], "ended", "its output is not stored");
    world.http().get(&format!("/v1/runs/{before}/logs")).is_problem(503, "unavailable");
    let doctor = world.doctor_says(1, &["s3://holm/f at http://127.", "refused", "start that store"]);
    let check = world.holm(["config", "check"]).exits(1);
    assert!(check.text().contains("server.blobs: s3://holm/f") && check.text().contains("refused"), "{check}");
    bucket.start_again();
    bucket.has(Fault::Answer(503, "SlowDown"), "PUT", "/logs/", 3);
    assert_eq!(world.until_ended(&run)["outcome"]["kind"], "succeeded");
    for (log, lines) in [(world.logs(&run), 60_000), (world.logs(&before), 5_000)] {
        assert!(noise::is_whole(log.text(), lines), "lines are missing, doubled or out of order");
    }
    assert_eq!(bucket.half_done(), Vec::<String>::new());
    for said in [world.up_complains(), world.up_says(), doctor.text().to_owned(), check.text().to_owned()] {
        assert!(!said.contains(SECRET) && !said.contains(KEY_ID), "credentials are shown: {said}");
    }
}

#[test]
fn a_bucket_that_cannot_be_used_is_refused_at_the_start_and_explained() {
    let mut bucket = S3Server::start();
    let world = World::with_config(&told(&bucket), "");
    let is_refused = |words: &[&str]| {
        world.holm(["up", "--private"]).exits(1).complains_of(words);
        let doctor = world.doctor_says(1, &[&["blobs"][..], words].concat());
        let check = world.holm(["config", "check"]).exits(1);
        for word in words {
            assert!(check.text().contains(word), "`{word}` is not in {check}");
        }
        for said in [doctor, check] {
            assert!(!said.text().contains(SECRET) && !said.text().contains("hunter2"), "a secret is shown: {said}");
        }
    };
    is_refused(&["server.blobs_credentials", "keys cannot be read"]);
    write_keys(&world, "hunter2");
    is_refused(&["the credentials are refused", "SignatureDoesNotMatch", "give credentials that work"]);
    write_keys(&world, SECRET);
    for (fault, words) in [
        (Fault::Answer(403, "RequestTimeTooSkewed"), ["the clocks of this machine and of the store differ", "NTP"]),
        (Fault::Answer(404, "NoSuchBucket"), ["there is no such bucket", "make the bucket"]),
    ] {
        bucket.has(fault, "", "", usize::MAX);
        is_refused(&words);
        bucket.heals();
    }
    bucket.stop();
    is_refused(&["refused", "--blobs"]);

    for (place, words) in [
        ("s3://AKIA:hunter2@holm", "credentials are no part of it"),
        ("s3://holm?endpoint=http://far.example", "http=allowed"),
        ("s3://holm?secret=hunter2", "after `?` it has only"),
        ("/srv/hunter2", "give `file:/PATH` or `s3://BUCKET/PREFIX`"),
    ] {
        let ran = world.holm(["up", "--private", "--blobs", place]).exits(2);
        assert!(!ran.complaint().contains("hunter2"), "{ran}");
        ran.complains_of(&["--blobs", words]);
    }
}

#[test]
fn a_folder_elsewhere_keeps_large_objects() {
    let mut world = World::new();
    let folder = world.folder("elsewhere");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).expect("a mode");
    world.start_up_with(&["--blobs", &format!("file:{}", folder.display())]);
    let run = world.detach(noise::command(20_000));
    world.until_ended(&run);
    eventually("its log is there", || fs::read_dir(folder.join("orgs")).ok().map(drop));
    assert!(noise::is_whole(world.logs(&run).text(), 20_000), "it is another log");
    let lent = world.run(["--mount", &format!("{}:/blobs", folder.display()), "true"]).exits(125);
    lent.complains_of(&["/elsewhere"]);
}
