//! `holm login`: keeps a server and a token for it as a context.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};

use anyhow::Context as _;
use clap::Args;
use holm_api::client::{Client, Endpoint, SecretString};
use secrecy::ExposeSecret as _;

use super::Usage;
use crate::{
    config::{LOCAL, Source, check_token, file, read_token},
    output::escaped,
    session::Session,
};

/// The longest line that is taken for a token, in bytes.
const LINE_BYTES_MAX: u64 = 4_096;

/// The flags of `holm login`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  holm login https://holm.example                   asks for the token
  holm login --as lab http://lab:7878 < token       takes it from standard input
  holm login --token-file token https://holm.example")]
pub struct LoginArgs {
    /// The server: `https://HOST[:PORT]`, `http://…` or `unix:/PATH`
    #[arg(value_name = "URL")]
    pub url: String,
    /// The name of the context [default: the host of the URL]
    #[arg(long = "as", value_name = "NAME")]
    pub name: Option<String>,
}

/// Checks the token with the server, and keeps it only if it works.
pub async fn execute(session: &Session, args: &LoginArgs) -> anyhow::Result<u8> {
    let endpoint = Endpoint::parse(&args.url)?;
    let name = name(args, &endpoint)?;
    let token = token(session)?;
    let who = Client::new(endpoint.clone(), token.clone())?.whoami().await?;
    let change = file::Change::Put { name: &name, server: &endpoint.to_string(), token: token.expose_secret() };
    file::change(&session.config.path, &change)?;
    let org = escaped(&who.org_name);
    let token_name = escaped(&who.token.name);
    let output = session.output;
    if output.json {
        output.value(&who)?;
    }
    output.note(format!("logged in to {endpoint} as `{token_name}` of `{org}`; context `{name}` is used from now on"));
    Ok(0)
}

fn name(args: &LoginArgs, endpoint: &Endpoint) -> Result<String, Usage> {
    let host = match endpoint {
        Endpoint::Tcp(url) => url.split("://").nth(1).and_then(|rest| rest.split(['/', ':']).next()).unwrap_or(""),
        Endpoint::Unix(_) => "socket",
    };
    let name = args.name.as_deref().unwrap_or(host);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name == LOCAL || name.len() > 64 || !name.chars().all(plain) {
        let problem = "give --as NAME, a name of letters, digits, `-`, `_` and `.` other than `local`";
        return Err(Usage::new("--as", name, problem));
    }
    Ok(name.to_owned())
}

fn token(session: &Session) -> anyhow::Result<SecretString> {
    if let Some(file) = session.config.token_file() {
        return Ok(read_token(&file.value, &file.source)?.value);
    }
    let source = Source::Flag("standard input");
    let stdin = io::stdin();
    let hidden = stdin.is_terminal();
    let _echo_back = if hidden {
        session.output.stderr_verbatim("Token: ");
        Some(Hidden::new()?)
    } else {
        None
    };
    let mut line = String::new();
    stdin.lock().take(LINE_BYTES_MAX).read_line(&mut line).context("cannot read the token")?;
    if hidden {
        session.output.stderr_verbatim("\n");
    }
    check_token(SecretString::from(line).expose_secret(), &source)
}

/// What is typed is not shown while this lives.
struct Hidden(rustix::termios::Termios);

impl Hidden {
    fn new() -> io::Result<Self> {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // A terminal that has gone has nothing to be restored.
        let _gone = rustix::termios::tcsetattr(io::stdin(), rustix::termios::OptionalActions::Flush, &self.0);
    }
}
