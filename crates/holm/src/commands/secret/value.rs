//! The value of a secret, from wherever it is given, checked before it is sent: so what is refused is told by the name of the
//! file or of the variable (SPEC K4), and never itself.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, IsTerminal as _, Read},
    os::unix::ffi::OsStringExt as _,
    path::PathBuf,
};

use anyhow::Context as _;
use clap::Args;
use holm_api::{client::SecretString, secrets::SecretValue};
use holm_domain::secret::{BadValue, SecretName, VALUE_BYTES_MAX, check_value};
use zeroize::Zeroizing;

use crate::{commands::Usage, output::Output, typed};

/// The most that is read: the longest value, its line break, and one byte more, by which it is seen that more follows.
const INPUT_BYTES_MAX: usize = VALUE_BYTES_MAX + 3;

/// Which secret is given a value, and where that is to be had.
#[derive(Debug, Clone, Args)]
pub struct Given {
    /// Its name: a letter, then letters, digits, `_`, `-` and `.`
    pub name: SecretName,
    /// For runs of this project alone; for the whole org where it is left out
    #[arg(long, value_name = "NAME")]
    pub project: Option<String>,
    /// Take the value from this file instead of standard input
    #[arg(long, value_name = "FILE", conflicts_with = "from_env")]
    pub from_file: Option<PathBuf>,
    /// Take the value from this variable of the environment
    #[arg(long, value_name = "VARIABLE")]
    pub from_env: Option<String>,
}

impl Given {
    /// The value; refused by the name of where it comes from.
    pub async fn value(&self, output: Output) -> anyhow::Result<SecretValue> {
        let (flag, place, bytes) = match (&self.from_file, &self.from_env) {
            (Some(file), _) => {
                let named = file.display().to_string();
                let bytes = File::open(file).and_then(read).with_context(|| format!("--from-file: {named}"))?;
                ("--from-file", named, bytes)
            }
            (None, Some(variable)) => {
                ("--from-env", variable.clone(), of_variable(variable, std::env::var_os(variable))?)
            }
            (None, None) => ("standard input", "[redacted]".to_owned(), self.of_input(output).await?),
        };
        let bytes = if self.from_env.is_some() { &bytes[..] } else { without_line_break(&bytes) };
        checked(bytes).map_err(|problem| Usage::new(flag, &place, problem).into())
    }

    async fn of_input(&self, output: Output) -> anyhow::Result<Zeroizing<Vec<u8>>> {
        if io::stdin().is_terminal() {
            return typed::line(output, &format!("Value of {}: ", self.name), INPUT_BYTES_MAX as u64).await;
        }
        read(io::stdin().lock()).context("cannot read standard input")
    }
}

fn of_variable(name: &str, value: Option<OsString>) -> Result<Zeroizing<Vec<u8>>, Usage> {
    let value = value.ok_or_else(|| Usage::new("--from-env", name, "there is no such variable; is it exported?"))?;
    Ok(Zeroizing::new(value.into_vec()))
}

fn read(from: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(INPUT_BYTES_MAX));
    from.take(INPUT_BYTES_MAX as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn without_line_break(bytes: &[u8]) -> &[u8] {
    let line = bytes.strip_suffix(b"\n");
    line.map_or(bytes, |line| line.strip_suffix(b"\r").unwrap_or(line))
}

fn checked(bytes: &[u8]) -> Result<SecretValue, String> {
    if bytes.len() > VALUE_BYTES_MAX {
        return Err(BadValue::Long.to_string());
    }
    let value = std::str::from_utf8(bytes).map_err(|_| "it is no text in UTF-8")?;
    check_value(value).map_err(|bad| bad.to_string())?;
    Ok(SecretString::from(value).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Result<String, String> {
        let bytes = read(bytes).unwrap();
        checked(without_line_break(&bytes)).map(|value| value.expose().to_owned())
    }

    #[test]
    fn one_line_break_at_the_end_is_cut_off_and_nothing_else() {
        for given in ["geheimnis", "geheimnis\n", "geheimnis\r\n"] {
            assert_eq!(of(given.as_bytes()).as_deref(), Ok("geheimnis"), "{given:?}");
        }
        for given in ["geheimnis\n\n", "geheimnis\r", "geheimnis\nmore", "\ngeheimnis", "geheimnis \n"] {
            assert!(of(given.as_bytes()).is_err(), "{given:?}");
        }
        assert_eq!(of(b"geheimnis\xff"), Err("it is no text in UTF-8".to_owned()));
    }

    #[test]
    fn what_is_longer_is_refused_and_not_cut() {
        let longest = "ab".repeat(VALUE_BYTES_MAX / 2);
        assert_eq!(of(format!("{longest}\r\n").as_bytes()).as_deref(), Ok(longest.as_str()));
        for more in ["c", "c\n", "\r\nmore", "é", "\n\n"] {
            assert_eq!(of(format!("{longest}{more}").as_bytes()), Err(BadValue::Long.to_string()), "{more:?}");
        }
    }

    #[tokio::test]
    async fn what_is_refused_is_named_by_where_it_comes_from() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("example");
        std::fs::write(&file, "your-api-key\n").unwrap();
        let output = Output::new(false, false);
        let given = |from_file, from_env| Given { name: "a".parse().unwrap(), project: None, from_file, from_env };
        let refused = given(Some(file.clone()), None).value(output).await.unwrap_err().to_string();
        assert!(refused.contains(&file.display().to_string()) && refused.contains("placeholder"), "{refused}");
        assert!(!refused.contains("your-api-key"), "{refused}");
        let missing = given(Some(folder.path().join("none")), None).value(output).await.unwrap_err();
        assert!(format!("{missing:#}").contains("none: No such file"), "{missing:#}");
        let unset = given(None, Some("HOLM_TEST_UNSET".to_owned())).value(output).await.unwrap_err().to_string();
        assert!(unset.contains("HOLM_TEST_UNSET") && unset.contains("no such variable"), "{unset}");
    }
}
