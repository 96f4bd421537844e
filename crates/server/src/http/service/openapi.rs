//! `GET /v1/openapi.json`: the description of the API, made from the code.

use std::sync::LazyLock;

use bytes::Bytes;
use holm_api::{PROBLEM_JSON, problem::Problem};
use http::{HeaderValue, header::CONTENT_TYPE};
use utoipa::{
    OpenApi as _,
    openapi::{
        ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder,
        path::{Operation, PathItem},
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

const SCHEME: &str = "token";

/// What stands before the paths.
pub fn head() -> OpenApi {
    #[derive(utoipa::OpenApi)]
    #[openapi(
        info(
            title = "Holm",
            description = "Runs untrusted work in sealed sandboxes. Every error is a problem document (RFC 9457) with a \
                           stable code; times are microseconds since the Unix epoch.",
        ),
        components(schemas(Problem))
    )]
    struct Head;
    Head::openapi()
}

/// Adds what every operation has: the token, unless it says that it needs none, and problem documents.
pub fn complete(openapi: &mut OpenApi) {
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("holm_…").build();
    let components = openapi.components.get_or_insert_default();
    components.add_security_scheme(SCHEME, SecurityScheme::Http(scheme));
    openapi.security = Some(vec![SecurityRequirement::new(SCHEME, Vec::<String>::new())]);
    for item in openapi.paths.paths.values_mut() {
        for operation in operations(item) {
            operation.responses.responses.insert("default".to_owned(), RefOr::T(problem()));
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete].into_iter().flatten()
}

fn problem() -> Response {
    let schema = Ref::from_schema_name("Problem");
    let content = ContentBuilder::new().schema(Some(schema)).build();
    ResponseBuilder::new().description("What went wrong.").content(PROBLEM_JSON, content).build()
}

static DOCUMENT: LazyLock<Result<Bytes, String>> =
    LazyLock::new(|| crate::openapi().to_pretty_json().map(Bytes::from).map_err(|error| error.to_string()));

/// The description of the API
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "service", operation_id = "openapi", security(()),
    responses((status = 200, description = "The description, as OpenAPI 3.1.", body = Object))
)]
pub async fn openapi() -> Result<axum::response::Response, crate::problem::Failure> {
    let document = DOCUMENT.as_ref().map_err(crate::problem::Failure::internal)?;
    let mut response = axum::response::Response::new(axum::body::Body::from(document.clone()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
