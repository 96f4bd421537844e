//! Requests to which something is added, and answers in which that is masked.

use super::{
    super::inject::{Values, Vault},
    *,
};

const SECRET: &str = "s3cret-of-the-test";
const STARS: &str = "******************";

impl World {
    /// One whose server has a credential for what is below `/v1`.
    async fn bearing(protocols: &'static [&'static [u8]]) -> Self {
        let world = Self::adding(&["GET,POST /"], &["/v1=bearer:KEY"], protocols).await;
        world.has_values();
        world
    }

    fn has_values(&self) {
        let credential = format!("{NAME}:{}/v1=bearer:KEY", self.port).parse().unwrap();
        let values = Values::from([("KEY".parse().unwrap(), SECRET.into())]);
        self.interceptor.add(Vault::new(&[credential], &values).unwrap());
    }

    async fn asks_by(&self, is_http2: bool, method: &str, path: &str, body: Said) -> Response<Incoming> {
        self.asks_with(is_http2, (method, path), &[], body).await
    }

    async fn asks_with(
        &self,
        is_http2: bool,
        (method, path): (&str, &str),
        fields: &[(&str, &str)],
        body: Said,
    ) -> Response<Incoming> {
        let target = if is_http2 { format!("https://{}{path}", self.authority()) } else { path.to_owned() };
        let mut request = Request::builder().method(method).uri(target).header("authorization", "Bearer mine");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        if is_http2 {
            return within(self.sends_by_http2().await.send_request(request.body(body).unwrap())).await.unwrap();
        }
        let request = request.header(HOST, self.authority()).body(body).unwrap();
        within(self.sends_by_http1().await.send_request(request)).await.unwrap()
    }
}

#[tokio::test]
async fn the_server_is_given_the_credential_and_the_client_hears_nothing_of_it() {
    for protocols in [BOTH, HTTP1] {
        let mut world = World::bearing(protocols).await;
        for is_http2 in [true, false] {
            let answer = world.asks_by(is_http2, "GET", "/v1/reflects?a=b", nothing()).await;
            assert_eq!(answer.headers()["x-bears"], format!("Bearer {STARS}"));
            let body = within(answer.collect()).await.unwrap().to_bytes();
            assert_eq!(body, format!("you said <Bearer {STARS}>"));
            let came = world.came().pop().unwrap();
            let values: Vec<_> = came.headers.get_all("authorization").iter().collect();
            assert_eq!(values, [format!("Bearer {SECRET}").as_str()], "the client's own is gone");
            assert_eq!(came.headers["accept-encoding"], "identity");
            let told = world.told().await;
            assert_eq!(told.secrets, ["KEY".parse().unwrap()]);
            assert!(!format!("{told:?}").contains(SECRET), "{told:?}");
        }
    }
}

#[tokio::test]
async fn elsewhere_on_the_host_nothing_is_added_and_what_the_client_set_is_gone_all_the_same() {
    let mut world = World::bearing(BOTH).await;
    for path in ["/v2", "/v10", "/", "/v1/%2e%2e/v2", "/v1//x"] {
        world.asks_by(true, "GET", path, nothing()).await;
        let came = world.came().pop().unwrap();
        assert!(!came.headers.contains_key("authorization"), "{path}: {came:?}");
        assert_eq!(world.told().await.secrets, [], "{path}");
    }
}

#[tokio::test]
async fn what_comes_in_pieces_is_masked_across_them_and_nothing_of_it_is_lost() {
    let world = World::bearing(BOTH).await;
    for is_http2 in [true, false] {
        for cut in [1, 3, 4, 9, SECRET.len() - 1] {
            let (mut sender, body) = Channel::<Bytes, Infallible>::new(1);
            let answer = world.asks_by(is_http2, "POST", "/v1/echo", body.boxed_unsync());
            let (first, rest) = SECRET.split_at(cut);
            let sends = async {
                for piece in ["before ", first, rest, " after s3c"] {
                    sender.send_data(piece.into()).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                drop(sender);
            };
            let (answer, ()) = tokio::join!(answer, sends);
            let body = within(answer.collect()).await.unwrap().to_bytes();
            let body = String::from_utf8(body.to_vec()).unwrap();
            // Where it pauses long enough the first few bytes are let go.
            assert_eq!(body.len(), "before  after s3c".len() + SECRET.len());
            assert!(body.starts_with("before ") && body.ends_with(" after s3c"), "{body}");
            assert!(body.contains(&STARS[3..]) && !body.contains("s3cr*"), "{body}");
        }
    }
}

#[tokio::test]
async fn a_begin_that_nothing_follows_is_let_go_and_the_rest_is_masked_then() {
    let world = World::bearing(BOTH).await;
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(1);
    let (answer, ()) = tokio::join!(world.asks_by(true, "POST", "/v1/echo", body.boxed_unsync()), async {
        sender.send_data("it ends in s3".into()).await.unwrap();
    });
    let mut body = answer.into_body();
    let mut heard = String::new();
    while heard.len() < "it ends in s3".len() {
        let frame = within(body.frame()).await.unwrap().unwrap();
        heard.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    assert_eq!(heard, "it ends in s3");
    sender.send_data(SECRET[2..].into()).await.unwrap();
    drop(sender);
    let rest = within(body.collect()).await.unwrap().to_bytes();
    assert_eq!(rest, STARS[2..]);
}

#[tokio::test]
async fn trailers_come_behind_what_was_held_back() {
    let world = World::bearing(&[b"h2"]).await;
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(1);
    let (answer, ()) = tokio::join!(world.asks_by(true, "POST", "/v1/echo", body.boxed_unsync()), async {
        sender.send_data("said s3c".into()).await.unwrap();
        drop(sender);
    });
    assert_eq!(within(answer.collect()).await.unwrap().to_bytes(), "said s3c");
    let answer = world.asks_by(true, "POST", "/v1/trailers", nothing()).await;
    let answer = within(answer.collect()).await.unwrap();
    assert_eq!(answer.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(answer.trailers().unwrap()["x-bears"], format!("Bearer {STARS}"));
    assert_eq!(answer.to_bytes(), "said s3cr");
}

#[tokio::test]
async fn what_a_connection_became_is_masked() {
    let world = World::bearing(HTTP1).await;
    let request = world.asks("GET", "/v1/socket").header("connection", "Upgrade").header(UPGRADE, "websocket");
    let request = request.header("sec-websocket-extensions", "permessage-deflate");
    let mut sender = world.sends_by_http1().await;
    let answer = within(sender.send_request(request.body(nothing()).unwrap())).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    let came = world.came().pop().unwrap();
    assert_eq!(came.headers["authorization"], format!("Bearer {SECRET}"));
    assert!(!came.headers.contains_key("sec-websocket-extensions"));
    let mut stream = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    // The server says each byte and one more.
    let text = format!("<{SECRET}>s3");
    let asked: Vec<u8> = text.bytes().map(|byte| byte - 1).collect();
    stream.write_all(&asked).await.unwrap();
    let mut heard = vec![0; text.len()];
    within(stream.read_exact(&mut heard)).await.unwrap();
    let heard = String::from_utf8(heard).unwrap();
    assert!(heard.contains(&STARS[3..]) && heard.ends_with(">s3") && !heard.contains("s3cr"), "{heard}");
}

#[tokio::test]
async fn an_answer_in_which_nothing_can_be_found_is_refused() {
    let mut world = World::bearing(BOTH).await;
    for (encoding, is_fit) in [("gzip", false), ("identity", true), ("identity, br", false), ("", false)] {
        let answer = world.asks_with(true, ("GET", "/v1/reflects"), &[("x-encoding", encoding)], nothing()).await;
        let (status, body) = (answer.status(), within(answer.collect()).await.unwrap().to_bytes());
        let refused = (!is_fit).then_some(Refusal::EncodedAnswer);
        assert_eq!(world.told().await.refused, refused, "{encoding}");
        if is_fit {
            assert_eq!(status, StatusCode::OK);
        } else {
            assert_eq!((status, code(&body).as_str()), (StatusCode::BAD_GATEWAY, "encoded_answer"), "{encoding}");
        }
    }
}

#[tokio::test]
async fn before_the_values_are_there_no_request_is_made() {
    let world = World::adding(&["GET /"], &["/v1=bearer:KEY"], BOTH).await;
    let answer = world.asks_by(true, "GET", "/v2", nothing()).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(code(&within(answer.collect()).await.unwrap().to_bytes()), "no_credential");
    assert!(world.came().is_empty());
    world.has_values();
    assert_eq!(world.asks_by(true, "GET", "/v1/put", nothing()).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn where_credentials_are_for_requests_are_seen_whatever_the_rules_say() {
    let credential = |text: &str| text.parse().unwrap();
    let rules = ["up.example", "other.example"].map(|rule| rule.parse().unwrap()).to_vec();
    let ways_out = WaysOut { name_servers: vec![(HERE, 53).into()], ..WaysOut::default() };
    let outside = Outside::new(rules, vec![credential("up.example/v1=bearer:KEY")], ways_out).unwrap();
    let is_seen = |name: &str, port| {
        let host = holm_domain::egress::name::Host::from_wire(name.as_bytes()).unwrap();
        outside.way(&host, port).map(|way| way.is_seen)
    };
    assert_eq!(is_seen("up.example", 443), Some(true));
    assert_eq!(is_seen("other.example", 443), Some(false));
    assert_eq!(is_seen("up.example", 444), None);
}

#[tokio::test]
async fn who_has_a_server_repeat_how_a_secret_may_begin_is_answered_a_few_times_and_no_more() {
    let mut world = World::bearing(BOTH).await;
    let mut broke_off = 0;
    for _ in 0..6 {
        let answer = world.asks_by(true, "POST", "/v1/echo", said("is it s3cr")).await;
        broke_off += usize::from(within(answer.collect()).await.is_err());
        let refused = world.told().await.refused;
        assert!([None, Some(Refusal::Guessed)].contains(&refused), "{refused:?}");
    }
    assert_eq!(broke_off, 3);
    let answer = world.asks_by(true, "POST", "/v1/echo", said("something else")).await;
    assert_eq!(within(answer.collect()).await.unwrap().to_bytes(), "something else");
}

#[tokio::test]
async fn calls_are_asked_not_to_be_compressed_and_refused_where_they_are() {
    let world = World::bearing(BOTH).await;
    let fields = [("grpc-accept-encoding", "gzip"), ("connect-accept-encoding", "gzip"), ("a-im", "gzip")];
    let answer = world.asks_with(true, ("GET", "/v1/put"), &fields, nothing()).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let came = world.came().pop().unwrap();
    assert!(fields.iter().all(|(name, _)| !came.headers.contains_key(*name)), "{came:?}");
    let answer = world.asks_with(true, ("GET", "/v1/reflects"), &[("x-grpc-encoding", "gzip")], nothing()).await;
    assert_eq!(code(&within(answer.collect()).await.unwrap().to_bytes()), "encoded_answer");
}
