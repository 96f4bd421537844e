//! `holm login`: keeps a server and a token for it as a context.

use clap::Args;
use holm_api::client::{Client, Endpoint, SecretString};
use secrecy::ExposeSecret as _;

use super::Usage;
use crate::{
    config::{LOCAL, Source, check_token, file, read_token},
    output::escaped,
    session::Session,
    typed,
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
    let token = token(session).await?;
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

async fn token(session: &Session) -> anyhow::Result<SecretString> {
    if let Some(file) = session.config.token_file() {
        return Ok(read_token(&file.value, &file.source)?.value);
    }
    let line = typed::line(session.output, "Token: ", LINE_BYTES_MAX).await?;
    check_token(&String::from_utf8_lossy(&line), &Source::Flag("standard input"))
}
