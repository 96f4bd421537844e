//! A host under pressure: it says so, takes nothing new, and goes on with what it has.

use holm_e2e::{World, eventually};

#[test]
fn under_pressure_runs_wait_and_say_why_and_what_runs_goes_on() {
    let mut world = World::new();
    world.start_up_with(&["--host-pressure", "memory-full=20,memory-some=off"]);
    let running = world.detach(["--", "sh", "-c", "until test -e /go; do echo on; sleep 0.1; done"]);
    world.until_state(&running, "running");
    world.memory_stalls(20);
    eventually("the host says that it is under pressure", || {
        let hosts = world.http().get("/v1/hosts").is(200).json();
        hosts["hosts"][0]["labels"]["holm.pressure"].as_str().map(str::to_owned)
    });
    let shown = world.holm(["hosts"]).succeeds();
    let why = "under pressure: all tasks wait for memory 20.00 % of the time (limit 20 %); it takes nothing new";
    assert!(shown.text().contains(why), "{shown}");
    world.doctor_says(0, &["0 of 1 take runs", why]);
    let waiting = world.detach(["--", "echo", "done"]);
    let lines = |id: &str| world.logs(id).text().lines().count();
    let before = lines(&running);
    // Its output goes on, while the run behind it would long have been taken.
    eventually("output under pressure", || (lines(&running) > before + 40).then_some(()));
    assert_eq!(world.show(&waiting)["state"], "queued");
    let shown = world.holm(["show", &waiting]).succeeds();
    assert!(shown.text().contains("takes anything new now") && shown.text().contains(why), "{shown}");
    world.memory_stalls(9);
    assert_eq!(world.until_ended(&waiting)["outcome"]["kind"], "succeeded");
    assert_eq!(world.show(&running)["fence"], 1);
    let shown = world.holm(["hosts"]).succeeds();
    assert!(!shown.text().contains("pressure"), "{shown}");
    world.holm(["cancel", "--kill", &running]).succeeds();
    world.until_ended(&running);
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let world = World::new();
    for limits in ["io-full=0", "cpu-full=50", "io-full=101", ""] {
        world
            .holm(["up", "--private", "--host-pressure", limits])
            .exits(2)
            .complains_of(&["--host-pressure", "1 to 100"]);
    }
}
