//! What can be done about an error that ends a command, where its message alone does not say so.

use holm_api::client::ClientError;
use holm_domain::ErrorCode;

/// A sentence without a full stop; `told` is what was said of the error.
pub fn of(error: &anyhow::Error, told: &str) -> Option<String> {
    let of_client = error.chain().find_map(|cause| cause.downcast_ref::<ClientError>()).and_then(of_client);
    let is_full = ["disk is full", "No space left on device"].iter().any(|words| told.contains(words));
    of_client.or_else(|| is_full.then(|| "make room on that disk, or give another folder with --home".to_owned()))
}

fn of_client(error: &ClientError) -> Option<String> {
    match error {
        ClientError::Transport { endpoint, problem } => Some(of_transport(endpoint, problem)),
        ClientError::Status { .. } | ClientError::Decode { .. } => Some(
            "this is no server of Holm, or something stands before it: check --server, HOLM_SERVER and the context"
                .to_owned(),
        ),
        ClientError::Problem(problem) if problem.code == ErrorCode::Unauthenticated => Some(
            "looked for in --token-file, HOLM_TOKEN, HOLM_TOKEN_FILE and the context; `holm login URL` keeps a new one"
                .to_owned(),
        ),
        ClientError::Problem(problem) if problem.code == ErrorCode::LogsDeleted => {
            Some("`holm show RUN` and `holm events RUN` still tell how it went".to_owned())
        }
        _ => None,
    }
}

fn of_transport(endpoint: &str, problem: &str) -> String {
    // What rustls says of bytes that are not TLS.
    if endpoint.starts_with("https:") && problem.contains("InvalidContentType") {
        return "it does not speak TLS there: give http:// if that is meant".to_owned();
    }
    if problem.contains("dns error") {
        return "the name is not known here: check --server, HOLM_SERVER and the context".to_owned();
    }
    "is a server running there? `holm up` or `holm server` start one; without --server, HOLM_SERVER and a context \
     holm uses one of its own"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use holm_api::problem::Problem;

    use super::*;

    fn way_out(error: ClientError) -> Option<String> {
        let error = anyhow::Error::from(error).context("at some step");
        of(&error, &format!("{error:#}"))
    }

    #[test]
    fn each_has_its_way_out() {
        let transport = |endpoint: &str, problem: &str| {
            let (endpoint, problem) = (endpoint.to_owned(), problem.to_owned());
            way_out(ClientError::Transport { endpoint, problem }).unwrap()
        };
        assert!(transport("http://a", "Connection refused").contains("holm up"));
        assert!(transport("https://a", "corrupt message of type InvalidContentType").contains("http://"));
        assert!(transport("http://a", "dns error").contains("name"));
        let problem = |code| way_out(ClientError::Problem(Box::new(Problem::new(code, "no"))));
        assert!(problem(ErrorCode::Unauthenticated).unwrap().contains("holm login"));
        assert!(problem(ErrorCode::LogsDeleted).unwrap().contains("holm show"));
        assert_eq!(problem(ErrorCode::Conflict), None);
        let full = anyhow::anyhow!("write: No space left on device (os error 28)");
        assert!(of(&full, &full.to_string()).unwrap().contains("--home"));
    }
}
