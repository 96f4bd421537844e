//! What lies in an agent's folder and keeps it from starting: told by the command and by the doctor, with a way out that
//! works.

use std::{fs, path::Path, process::Command};

use holm_e2e::{World, eventually, ran::send};
use rustix::process::Signal;

/// Nothing can be run, and the doctor tells the same.
#[track_caller]
fn is_told(world: &World, what: &str, way_out: &str) {
    let complaint = world.run(["--", "true"]).exits(125).complains_of(&[what, way_out]).complaint();
    let error = complaint.lines().last().expect("an error");
    assert_eq!(error.matches(what).count(), 1, "{error}");
    world.doctor_says(1, &[what, way_out]);
}

#[track_caller]
fn is_well(world: &World) {
    assert_eq!(world.run(["--", "echo", "well"]).succeeds().text(), "well\n");
    world.doctor_says(0, &["at work"]);
    world.holm(["down"]).succeeds();
}

#[test]
fn files_that_are_damaged_are_told_and_removing_them_helps() {
    let world = World::new();
    is_well(&world);
    let agent = world.home().join("agent");
    let garbage = "\u{7f}x".repeat(400);
    let damages = [
        ("id", "", "id: it is empty", "the agent is a new host then"),
        ("id", garbage.as_str(), "id: it is longer than 256 bytes", "the agent is a new host then"),
        ("id", "agt_1", "id: `agt_1` is not an id", "the agent is a new host then"),
        ("label", "", "label: it is empty", "a new one is drawn"),
        ("label", "A label", "label: `A label` is not a label", "a new one is drawn"),
    ];
    for (name, bytes, what, way_out) in damages {
        fs::write(agent.join(name), bytes).expect("a file");
        is_told(&world, what, way_out);
        fs::remove_file(agent.join(name)).expect("a file");
        is_well(&world);
    }
    for bytes in ["", garbage.as_str()] {
        fs::write(agent.join("instance"), bytes).expect("a file");
        world.doctor_says(0, &["nothing waits for one"]);
        is_well(&world);
    }
}

#[test]
fn what_is_in_the_place_of_a_folder_is_told_and_moving_it_away_helps() {
    let world = World::new();
    is_well(&world);
    let agent = world.home().join("agent");
    for name in ["runs", "set-aside"] {
        fs::remove_dir_all(agent.join(name)).expect("a folder");
        fs::write(agent.join(name), "x").expect("a file");
        is_told(&world, &format!("{name}: it is no folder"), "move it away");
        fs::rename(agent.join(name), world.dir().join(name)).expect("a file");
        is_well(&world);
    }
}

fn id_of(agent: &Path) -> String {
    let written = || fs::read_to_string(agent.join("id")).ok().filter(|id| !id.is_empty());
    eventually("it has an id", written).trim().to_owned()
}

/// Both ways out of a damaged id while a run of the agent lives.
#[test]
fn an_agent_gets_its_identity_back_or_another_one_and_no_run_is_lost() {
    let mut world = World::with_short_leases();
    world.start_agent("only");
    let agent = world.dir().join("agent-only/agent");
    let id = id_of(&agent);
    let gate = world.folder("gate");
    let mount = format!("{}:/gate", gate.display());
    let script = "while [ ! -e /gate/open ]; do sleep 0.02; done; echo through";
    let run = world.detach(["--mount", &mount, "--", "sh", "-c", script]);
    world.until_state(&run, "running");
    assert!(world.holm(["hosts"]).succeeds().text().contains(&id));
    for way_out in [Some(&id), None] {
        world.kill_agent("only");
        fs::write(agent.join("id"), "").expect("a file");
        match way_out {
            Some(id) => fs::write(agent.join("id"), id).expect("a file"),
            None => fs::remove_file(agent.join("id")).expect("a file"),
        }
        world.start_agent("only");
    }
    assert_ne!(id_of(&agent), id);
    let again = eventually("it begins anew", || Some(world.show(&run)).filter(|run| run["fence"] != 1));
    assert_eq!(again["attempt"].as_u64().map(|number| number > 1), Some(true), "{again}");
    fs::write(gate.join("open"), "").expect("a file");
    assert_eq!(world.until_ended(&run)["outcome"]["kind"], "succeeded");
    assert_eq!(world.logs(&run).text(), "through\n");
}

/// What the agent of a copy finds on the host is the original's.
#[test]
fn a_copy_of_a_home_leaves_the_runs_of_the_original_alone() {
    let mut world = World::on_file();
    world.start_up();
    let gate = world.folder("gate");
    let mount = format!("{}:/gate", gate.display());
    let script = "echo begun; while [ ! -e /gate/open ]; do sleep 0.02; done; exit 7";
    let mut running = world.running(["--mount", &mount, "--", "sh", "-c", script]);
    running.says("begun");
    let run = world.newest();
    let copy = world.dir().join("copy");
    // Still for a moment, so that the copy of the database is whole.
    send(world.up_pid(), Signal::STOP);
    let copied = Command::new("cp").arg("-a").arg(world.home()).arg(&copy).status();
    send(world.up_pid(), Signal::CONT);
    assert!(copied.is_ok_and(|status| status.success()), "cannot copy the home");
    world.holm_in(&copy, ["ps"]).succeeds();
    assert_eq!(world.holm_in(&copy, ["run", "--", "echo", "own"]).succeeds().text(), "own\n");
    let aside = copy.join("agent/set-aside").join(format!("{run}.1.0"));
    assert!(aside.is_dir(), "{} is not there", aside.display());
    let shown = world.holm_in(&copy, ["show", "--json", &run]).succeeds().json();
    assert_ne!(shown[0]["state"], "ended", "the copy knows nothing of its end: {shown}");
    // Its end waits for the pass of its reaper that began with it.
    world.holm_in(&copy, ["down"]).succeeds();
    assert_eq!(world.show(&run)["state"], "running");
    fs::write(gate.join("open"), "").expect("a file");
    let ran = running.wait().exits(7);
    assert_eq!(ran.text(), "begun\n");
    assert_eq!(world.show(&run)["fence"], 1);
}
