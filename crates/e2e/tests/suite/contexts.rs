//! `holm login`, contexts, and the completion of shells.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use holm_e2e::{Ran, Running, World, ran::run};
use serde_json::{Value, json};

/// A user with a configuration of their own and without variables that name a server.
struct User<'a> {
    world: &'a World,
    config: PathBuf,
}

impl<'a> User<'a> {
    fn new(world: &'a World) -> Self {
        Self { world, config: world.folder("client").join("config.toml") }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.world.command();
        command.env_remove("HOLM_SERVER").env_remove("HOLM_TOKEN_FILE").env("HOLM_CONFIG", &self.config);
        command.args(arguments);
        command
    }

    fn holm(&self, arguments: &[&str]) -> Ran {
        run(&mut self.command(arguments))
    }

    fn login(&self, name: &str, url: &str, token: &Path) -> Ran {
        let token = File::open(token).expect("a token");
        Running::start_on(&mut self.command(&["login", "--as", name, url]), token).wait()
    }

    /// The names of the contexts but `local`, and the one in use.
    fn contexts(&self) -> (Vec<String>, String) {
        let listed = self.holm(&["context", "ls", "--json"]).succeeds().json();
        let all = listed.as_array().expect("a list");
        let name = |context: &Value| context["name"].as_str().expect("a name").to_owned();
        let current = all.iter().find(|context| context["current"] == json!(true)).map(name);
        let others = all.iter().map(name).filter(|name| name != "local").collect();
        (others, current.expect("one is in use"))
    }
}

#[test]
fn a_login_is_kept_as_a_context_and_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::with_server();
    let user = User::new(&world);
    let url = format!("unix:{}", world.dir().join("server.sock").display());
    let id = world.detach(["--label", "seen=by-both", "--", "true"]);
    assert_eq!(user.contexts(), (vec![], "local".to_owned()));

    user.login("lab", &url, &world.home().join("token")).succeeds();
    assert_eq!(user.contexts(), (vec!["lab".to_owned()], "lab".to_owned()));
    let mode = std::fs::metadata(&user.config).expect("a configuration").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds a token");
    assert_eq!(user.holm(&["ps", "--quiet"]).succeeds().word(), id);

    user.holm(&["context", "use", "local"]).succeeds();
    assert_eq!(user.contexts().1, "local");
    assert_eq!(user.holm(&["--context", "lab", "ps", "--quiet"]).succeeds().word(), id);
    user.holm(&["context", "use", "labs"]).exits(2).complains_of(&["labs", "holm context ls"]);
    user.holm(&["context", "rm", "lab"]).succeeds();
    assert_eq!(user.contexts(), (vec![], "local".to_owned()));
    let kept = std::fs::read_to_string(&user.config).expect("a configuration");
    assert!(!kept.contains("holm_"), "the token went with the context: {kept}");
}

#[test]
fn a_login_that_does_not_work_is_not_kept() {
    let world = World::with_server();
    let user = User::new(&world);
    let url = format!("unix:{}", world.dir().join("server.sock").display());
    let token = world.folder("client").join("token");
    std::fs::write(&token, format!("holm_{}\n", "a".repeat(43))).expect("a file");
    user.login("lab", &url, &token).exits(1).complains_of(&["unauthenticated"]);
    std::fs::write(&token, "hunter2\n").expect("a file");
    let refused = user.login("lab", &url, &token).exits(1);
    assert!(!refused.complaint().contains("hunter2"), "{refused}");
    user.login("local", &url, &world.home().join("token")).exits(2).complains_of(&["--as"]);
    assert_eq!(user.contexts(), (vec![], "local".to_owned()));
}

#[test]
fn shells_complete_commands_and_flags() {
    let world = World::new();
    let script = world.folder("shell").join("holm.bash");
    std::fs::write(&script, world.holm(["completion", "bash"]).succeeds().text()).expect("a file");
    let offers = |words: &str, current: &str| {
        let last = words.split(' ').count();
        let ask = format!(
            "source {}; COMP_WORDS=({words} {current:?}); COMP_CWORD={last}; _holm holm {current:?} x; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        run(Command::new("bash").args(["--norc", "-c", &ask])).succeeds().text().to_owned()
    };
    assert!(offers("holm", "ru").lines().any(|word| word == "run"));
    assert!(offers("holm run", "--mem").lines().any(|word| word == "--memory"));
    for shell in ["zsh", "fish"] {
        assert!(world.holm(["completion", shell]).succeeds().text().contains("holm"));
    }
}
