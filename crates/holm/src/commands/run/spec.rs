//! From flags to a [`RunSpec`].
//!
//! What always holds: whatever is refused is named by its flag, with what was typed and the way out; relative paths are
//! those of the current directory; the environment gives a value only where a flag asks for it by name.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use holm_domain::{
    egress::{
        credential::{BadCredential, Credential},
        policy::{BadRule, Rule},
    },
    error::InvalidField,
    limits::{Limits, MilliCpus},
    run::{Mount, RootSource, RunSpec, WorkDir},
    secret::{BadSecretName, SecretName},
};

use super::RunArgs;
use crate::{commands::Usage, units};

/// The longest file of variables, in bytes.
const ENV_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The spec for `args` in the directory and the environment of this process.
pub fn of_process(args: &RunArgs) -> anyhow::Result<RunSpec> {
    let cwd = std::env::current_dir()?;
    Ok(spec_of(args, &cwd, &|name| std::env::var(name).ok())?)
}

/// The flag by which a field of a spec is set.
pub fn flag_of(field: &str) -> Option<&'static str> {
    let flags = [
        ("limits.cpus_milli", "--cpus"),
        ("limits.memory_bytes", "--memory"),
        ("limits.pids", "--pids"),
        ("limits.disk_bytes", "--disk"),
        ("limits.log_bytes", "--log-limit"),
        ("limits.timeout_ms", "--timeout"),
        ("work_dir", "--dir"),
        ("mounts", "--mount"),
        ("host_labels", "--on"),
        ("priority", "--priority"),
        ("queue_timeout_ms", "--queue-timeout"),
        ("allow", "--allow"),
        ("credentials", "--credential"),
        ("placeholders", "--placeholder"),
        ("labels", "--label"),
        ("root", "--image"),
        ("cwd", "--workdir"),
        ("user", "--user"),
        ("env", "--env"),
        ("argv", "COMMAND"),
        ("runtime", "--runtime"),
        ("project", "--project"),
    ];
    let field = field.strip_prefix("spec.").unwrap_or(field);
    let below =
        |name: &str| field.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    flags.into_iter().find(|(name, _)| below(name)).map(|(_, flag)| flag)
}

/// The spec for `args` in the directory `cwd` and an environment.
pub fn spec_of(args: &RunArgs, cwd: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<RunSpec, Usage> {
    let credentials: Vec<_> = args.credential.iter().map(|text| credential(text, args)).collect::<Result<_, _>>()?;
    let spec = RunSpec {
        root: root(&args.image, cwd)?,
        runtime: args.runtime.clone(),
        argv: args.command.clone(),
        env: variables(args, env)?,
        cwd: args.workdir.clone(),
        user: args.user.clone(),
        work_dir: args.dir.as_deref().map(|dir| work_dir(dir, args.write_back, cwd)).transpose()?,
        mounts: args.mount.iter().map(|text| mount(text, cwd)).collect::<Result<_, _>>()?,
        limits: limits(args)?,
        require_limits: args.require_limits,
        allow_sudo: args.allow_sudo,
        allow: allowed(args, &credentials)?,
        credentials,
        placeholders: args.placeholder.iter().map(|text| placeholder(text)).collect::<Result<_, _>>()?,
        labels: labels(&args.label)?,
        host_labels: host_labels("--on", &args.on)?,
        priority: args.priority.as_deref().map(priority).transpose()?.unwrap_or_default(),
        queue_timeout_ms: args.queue_timeout.as_deref().map(queue_timeout_ms).transpose()?,
    };
    spec.validate().map_err(|error| named(&error, args))?;
    Ok(spec)
}

fn named(error: &InvalidField, args: &RunArgs) -> Usage {
    let flag = flag_of(&error.field).unwrap_or(&error.field);
    // What was typed is better known to the user than what became of it.
    let typed = match flag {
        "--cpus" => args.cpus.as_deref(),
        "--memory" => args.memory.as_deref(),
        "--pids" => args.pids.as_deref(),
        "--disk" => args.disk.as_deref(),
        "--log-limit" => args.log_limit.as_deref(),
        "--timeout" => args.timeout.as_deref(),
        "--queue-timeout" => args.queue_timeout.as_deref(),
        _ => None,
    };
    Usage::new(flag, typed.unwrap_or(&error.value), &error.problem)
}

fn limits(args: &RunArgs) -> Result<Limits, Usage> {
    let mut limits = Limits::default();
    if let Some(text) = &args.cpus {
        limits.cpus_milli = MilliCpus(read("--cpus", text, units::milli_cpus)?);
    }
    if let Some(text) = &args.memory {
        limits.memory_bytes = read("--memory", text, units::bytes)?;
    }
    if let Some(text) = &args.pids {
        limits.pids =
            read("--pids", text, |text| text.parse().map_err(|_| "give a whole number such as `256`".into()))?;
    }
    if let Some(text) = &args.disk {
        limits.disk_bytes = read("--disk", text, units::bytes)?;
    }
    if let Some(text) = &args.log_limit {
        limits.log_bytes = read("--log-limit", text, units::bytes)?;
    }
    if let Some(text) = &args.timeout {
        let timeout = read("--timeout", text, units::duration)?;
        limits.timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    }
    Ok(limits)
}

fn rule(text: &str) -> Result<Rule, Usage> {
    read("--allow", text, |text| text.parse().map_err(|error: BadRule| error.to_string()))
}

/// What the flags allow, and what credentials are for that is not among it.
fn allowed(args: &RunArgs, credentials: &[Credential]) -> Result<Vec<Rule>, Usage> {
    let mut allow: Vec<Rule> = args.allow.iter().map(|text| rule(text)).collect::<Result<_, _>>()?;
    let named: Vec<_> = credentials.iter().map(|credential| &credential.to).collect();
    let missing: Vec<Rule> =
        named.into_iter().filter(|to| !allow.iter().any(|rule| rule.leads_by_name(to))).cloned().collect();
    allow.extend(missing);
    Ok(allow)
}

fn credential(text: &str, args: &RunArgs) -> Result<Credential, Usage> {
    let read: Credential =
        read("--credential", text, |text| text.parse().map_err(|error: BadCredential| error.to_string()))?;
    Ok(Credential { require_ours: args.require_ours, ..read })
}

fn placeholder(text: &str) -> Result<(String, SecretName), Usage> {
    read("--placeholder", text, |text| {
        let (variable, name) =
            text.split_once('=').ok_or("give a variable and the name of a secret (`API_KEY=NAME`)")?;
        let name = name.parse().map_err(|error: BadSecretName| error.to_string())?;
        Ok((variable.to_owned(), name))
    })
}

fn priority(text: &str) -> Result<i32, Usage> {
    read("--priority", text, |text| text.parse().map_err(|_| "give a whole number of minutes such as `60`".into()))
}

fn queue_timeout_ms(text: &str) -> Result<u64, Usage> {
    let timeout = read("--queue-timeout", text, units::duration)?;
    Ok(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
}

fn read<T>(flag: &str, text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, Usage> {
    parse(text).map_err(|problem| Usage::new(flag, text, problem))
}

fn root(text: &str, cwd: &Path) -> Result<RootSource, Usage> {
    let root = RootSource::parse(text).map_err(|error| {
        let problem = format!("this image is not known: {}", error.problem);
        Usage::new("--image", text, problem)
    })?;
    Ok(match root {
        RootSource::Host {} => RootSource::Host {},
        RootSource::Dir { path } => RootSource::Dir { path: absolute("--image", Path::new(&path), cwd)? },
        RootSource::Tar { path } => RootSource::Tar { path: absolute("--image", Path::new(&path), cwd)? },
    })
}

fn work_dir(dir: &Path, keep_changes: bool, cwd: &Path) -> Result<WorkDir, Usage> {
    Ok(WorkDir { source: absolute("--dir", dir, cwd)?, keep_changes })
}

/// An absolute path without `.` and `..`. The file system resolves it where it can, so that `..` after a symbolic link is
/// what a shell's `cd` leads to; what is not on this machine is resolved by its text.
fn absolute(flag: &str, path: &Path, cwd: &Path) -> Result<String, Usage> {
    let shown = path.display().to_string();
    if path.as_os_str().is_empty() {
        return Err(Usage::new(flag, &shown, "give a path"));
    }
    let joined = cwd.join(path);
    let resolved = std::fs::canonicalize(&joined).unwrap_or_else(|_| without_dots(&joined));
    resolved.into_os_string().into_string().map_err(|_| Usage::new(flag, &shown, "give a path that is UTF-8"))
}

fn without_dots(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            Component::Normal(name) => plain.push(name),
            _ => {}
        }
    }
    plain
}

fn mount(text: &str, cwd: &Path) -> Result<Mount, Usage> {
    let way_out = "give SRC:DST or SRC:DST:ro";
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, read_only) = match parts[..] {
        [source, target] | [source, target, "rw"] => (source, target, false),
        [source, target, "ro"] => (source, target, true),
        _ => return Err(Usage::new("--mount", text, way_out)),
    };
    if source.is_empty() || target.is_empty() {
        return Err(Usage::new("--mount", text, way_out));
    }
    if !target.starts_with('/') {
        return Err(Usage::new("--mount", text, "give an absolute path inside as DST"));
    }
    Ok(Mount { source: absolute("--mount", Path::new(source), cwd)?, target: target.to_owned(), read_only })
}

fn variables(args: &RunArgs, env: &dyn Fn(&str) -> Option<String>) -> Result<BTreeMap<String, String>, Usage> {
    let mut variables = BTreeMap::new();
    for path in &args.env_file {
        let shown = path.display().to_string();
        let text = read_limited(path).map_err(|error| Usage::new("--env-file", &shown, error))?;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let at = format!("--env-file {shown}:{}", number + 1);
            variable(&at, line, env, &mut variables)?;
        }
    }
    for text in &args.env {
        variable("--env", text, env, &mut variables)?;
    }
    Ok(variables)
}

/// `KEY=VALUE`, or `KEY` with the value of this environment; like docker, a KEY that is not set here is left out.
fn variable(
    flag: &str,
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
    variables: &mut BTreeMap<String, String>,
) -> Result<(), Usage> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, env(text)),
    };
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(Usage::new(flag, text, "give KEY=VALUE, or KEY to take it from this environment"));
    }
    if let Some(value) = value {
        variables.insert(name.to_owned(), value);
    }
    Ok(())
}

fn read_limited(path: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(|error| format!("cannot read it: {error}"))?;
    let mut text = String::new();
    file.take(ENV_FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| format!("cannot read it: {error}"))?;
    if text.len() as u64 > ENV_FILE_BYTES_MAX {
        return Err(format!("give a file of at most {ENV_FILE_BYTES_MAX} bytes"));
    }
    Ok(text)
}

/// Labels of a host, as `flag` gives them: the same key does not stand twice.
pub fn host_labels(flag: &str, texts: &[String]) -> Result<BTreeMap<String, String>, Usage> {
    let mut labels = BTreeMap::new();
    for text in texts {
        let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.is_empty() && !key.contains(',')) else {
            return Err(Usage::new(flag, text, "give KEY=VALUE, with a key that has no `,`"));
        };
        if labels.insert(key.to_owned(), value.to_owned()).is_some_and(|other| other != value) {
            return Err(Usage::new(flag, text, "give each key one value: a host has no two"));
        }
    }
    Ok(labels)
}

fn labels(texts: &[String]) -> Result<BTreeMap<String, String>, Usage> {
    texts
        .iter()
        .map(|text| match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            None if !text.is_empty() => Ok((text.clone(), String::new())),
            _ => Err(Usage::new("--label", text, "give KEY=VALUE")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> RunArgs {
        RunArgs { image: "host".into(), command: vec!["true".into()], ..RunArgs::default() }
    }

    fn spec(args: &RunArgs) -> Result<RunSpec, Usage> {
        spec_of(args, Path::new("/nowhere/here"), &|name| (name == "SET").then(|| "value".to_owned()))
    }

    fn refused(args: &RunArgs) -> String {
        spec(args).unwrap_err().to_string()
    }

    #[test]
    fn flags_become_a_spec() {
        let args = RunArgs {
            cpus: Some("1.5".into()),
            memory: Some("512m".into()),
            timeout: Some("30s".into()),
            env: vec!["A=b=c".into(), "SET".into(), "NOT_SET".into(), "EMPTY=".into()],
            label: vec!["k=v".into(), "flag".into()],
            on: vec!["zone=a".into()],
            priority: Some("-5".into()),
            queue_timeout: Some("5m".into()),
            mount: vec!["data:/data:ro".into(), "/srv:/srv".into()],
            dir: Some("../x".into()),
            ..args()
        };
        let spec = spec(&args).unwrap();
        assert_eq!(spec.limits.cpus_milli, MilliCpus(1500));
        assert_eq!(spec.limits.memory_bytes, 512 << 20);
        assert_eq!(spec.limits.timeout_ms, 30_000);
        let env: Vec<(&str, &str)> = spec.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(env, [("A", "b=c"), ("EMPTY", ""), ("SET", "value")]);
        assert_eq!(spec.labels["flag"], "");
        assert_eq!(spec.host_labels["zone"], "a");
        assert_eq!((spec.priority, spec.queue_timeout_ms), (-5, Some(300_000)));
        assert_eq!(spec.mounts[0].source, "/nowhere/here/data");
        assert!(spec.mounts[0].read_only && !spec.mounts[1].read_only);
        assert_eq!(spec.work_dir.unwrap().source, "/nowhere/x");
    }

    #[test]
    fn absurd_values_name_flag_value_and_way_out() {
        let some = |text: &str| Some(text.to_owned());
        let absurd = [
            (RunArgs { cpus: some("0"), ..args() }, "--cpus", "0"),
            (RunArgs { cpus: some("many"), ..args() }, "--cpus", "many"),
            (RunArgs { memory: some("1b"), ..args() }, "--memory", "1b"),
            (RunArgs { memory: some("9999999t"), ..args() }, "--memory", "9999999t"),
            (RunArgs { pids: some("-1"), ..args() }, "--pids", "-1"),
            (RunArgs { disk: some("0"), ..args() }, "--disk", "0"),
            (RunArgs { timeout: some("0s"), ..args() }, "--timeout", "0s"),
            (RunArgs { timeout: some("400d"), ..args() }, "--timeout", "400d"),
            (RunArgs { priority: some("high"), ..args() }, "--priority", "high"),
            (RunArgs { priority: some("1441"), ..args() }, "--priority", "1441"),
            (RunArgs { queue_timeout: some("1ms"), ..args() }, "--queue-timeout", "1ms"),
            (RunArgs { queue_timeout: some("32d"), ..args() }, "--queue-timeout", "32d"),
            (RunArgs { image: "ubuntu".into(), ..args() }, "--image", "ubuntu"),
            (RunArgs { workdir: some("relative"), ..args() }, "--workdir", "relative"),
            (RunArgs { user: some("a b"), ..args() }, "--user", "a b"),
            (RunArgs { mount: vec!["a".into()], ..args() }, "--mount", "a"),
            (RunArgs { mount: vec!["a:b".into()], ..args() }, "--mount", "a:b"),
            (RunArgs { mount: vec!["/a:/b:xx".into()], ..args() }, "--mount", "/a:/b:xx"),
            (RunArgs { mount: vec!["/a:/proc".into()], ..args() }, "--mount", "/proc"),
            (RunArgs { env: vec!["=x".into()], ..args() }, "--env", "=x"),
            (RunArgs { label: vec!["=x".into()], ..args() }, "--label", "=x"),
            (RunArgs { on: vec!["=x".into()], ..args() }, "--on", "=x"),
            (RunArgs { on: vec!["gpu".into()], ..args() }, "--on", "gpu"),
            (RunArgs { on: vec!["a=b".into(), "a=c".into()], ..args() }, "--on", "a=c"),
            (RunArgs { env_file: vec!["/no/such".into()], ..args() }, "--env-file", "/no/such"),
        ];
        for (args, flag, value) in absurd {
            let text = refused(&args);
            assert!(text.starts_with(flag) && text.contains(&format!("`{value}`")), "{flag} {value}: {text}");
            assert!(text.contains("give") || text.contains("cannot read"), "no way out: {text}");
        }
    }

    #[test]
    fn files_of_variables() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(&path, "# comment\n\nA=1\nSET\nB= two words\n").unwrap();
        let with = RunArgs { env_file: vec![path.clone()], env: vec!["A=2".into()], ..args() };
        let env = spec(&with).unwrap().env;
        assert_eq!((env["A"].as_str(), env["SET"].as_str(), env["B"].as_str()), ("2", "value", " two words"));
        std::fs::write(&path, "A=1\nnot a variable\n").unwrap();
        assert!(refused(&with).contains("env:2"), "{}", refused(&with));
    }

    #[test]
    fn links_in_paths_are_resolved_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("real/inner")).unwrap();
        std::os::unix::fs::symlink("real/inner", base.join("link")).unwrap();
        let with = RunArgs { dir: Some("link/..".into()), ..args() };
        let spec = spec_of(&with, &base, &|_| None).unwrap();
        assert_eq!(spec.work_dir.unwrap().source, base.join("real").display().to_string());
    }
}
