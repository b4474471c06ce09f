//! Routes of the API, and the OpenAPI document that describes them.

use axum::{Json, Router, extract::State, routing::get};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        self, Content, OpenApi as Document, Ref, RefOr, ResponseBuilder,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App, checkpoints, claims, cloud_hypervisor, disks, events, evict, exec_stream, guest_files,
    guests, host, in_flight, listener, memory, metrics, pools, programs, restores, sample,
    suspended_claims, watch,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "brood",
        description = "Restores hundreds to thousands of microVMs from one memory checkpoint, \
            sharing every page that no guest has written.\n\nErrors are problem details (RFC 9457). \
            The daemon's socket is for its owner and needs no token; over the port, requests bear one.",
        license(name = "BSD-2-Clause", identifier = "BSD-2-Clause"),
    ),
    components(schemas(
        events::RestoreEvent,
        exec_stream::ExecMessage,
        exec_stream::ExecEvent,
        claims::ClaimEvent,
        suspended_claims::ResumeEvent,
        watch::GuestEvent,
        watch::ReleaseEvent,
        sample::Sample,
    )),
    modifiers(&Contract),
    security((), ("token" = [])),
    servers((
        url = "http://127.0.0.1:{port}",
        description = "brood serve --listen PORT --token-file FILE",
        variables(("port" = (default = "7300", description = "The port that the daemon listens on"))),
    )),
    tags(
        (name = "host", description = "The host and the daemon"),
        (name = "checkpoints", description = "What guests are restored from"),
        (name = "guests", description = "Restored virtual machines"),
        (name = "pools", description = "Guests that wait, stopped, to be claimed"),
    ),
)]
struct Base;

/// What the token is.
struct Contract;

impl Modify for Contract {
    fn modify(&self, document: &mut Document) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The token in the daemon's --token-file"))
            .build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// Gives every operation the answer of an error, and every response a description, as the
/// specification demands: by default the operation's summary.
fn describe(document: &mut Document) {
    let problem = Content::new(Some(Ref::from_schema_name("Problem")));
    let problem = ResponseBuilder::new()
        .description("What went wrong, why, and what to do next")
        .content("application/problem+json", problem)
        .build();
    for item in document.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.patch,
            &mut item.delete,
        ];
        for operation in operations.into_iter().flatten() {
            let does = operation.summary.clone().unwrap_or_default();
            let responses = &mut operation.responses.responses;
            responses.insert("default".to_owned(), problem.clone().into());
            for response in responses.values_mut() {
                if let RefOr::T(response) = response
                    && response.description.is_empty()
                {
                    response.description.clone_from(&does);
                }
            }
        }
    }
}

/// All routes, and the document.
pub(super) fn routes() -> (Router<App>, Document) {
    let v1 = OpenApiRouter::new()
        .routes(routes!(host::host))
        .routes(routes!(host::daemon))
        .routes(routes!(listener::events))
        .routes(routes!(checkpoints::list))
        .routes(routes!(checkpoints::show, checkpoints::remove))
        .routes(routes!(checkpoints::verify))
        .routes(routes!(checkpoints::trust))
        .routes(routes!(checkpoints::plan))
        .routes(routes!(checkpoints::demo))
        .routes(routes!(checkpoints::flatten))
        .routes(routes!(disks::leftovers))
        .routes(routes!(disks::sweep))
        .routes(routes!(
            guests::list,
            restores::restore,
            guests::destroy_many
        ))
        .routes(routes!(in_flight::list))
        .routes(routes!(in_flight::cancel))
        .routes(routes!(guests::show, guests::destroy))
        .routes(routes!(memory::memory))
        .routes(routes!(guests::ask))
        .routes(routes!(programs::exec, exec_stream::stream))
        .routes(routes!(guest_files::read, guest_files::write))
        .routes(routes!(guest_files::logs))
        .routes(routes!(guests::pause))
        .routes(routes!(guests::resume))
        .routes(routes!(guests::suspend))
        .routes(routes!(cloud_hypervisor::socket))
        .routes(routes!(pools::list, pools::create))
        .routes(routes!(
            pools::show,
            pools::apply,
            pools::change,
            pools::remove
        ))
        .routes(routes!(pools::fill))
        .routes(routes!(evict::evict))
        .routes(routes!(claims::claim))
        .routes(routes!(
            suspended_claims::show,
            claims::renew,
            claims::release
        ))
        .routes(routes!(suspended_claims::suspend))
        .routes(routes!(suspended_claims::resume));
    let (router, mut document) = OpenApiRouter::with_openapi(Base::openapi())
        .routes(routes!(host::health))
        .routes(routes!(metrics::text::metrics))
        .nest("/api/v1", v1)
        .split_for_parts();
    describe(&mut document);
    let served = document.clone();
    let router = router.route(
        "/openapi.json",
        get(async move |_: State<App>| Json(served.clone())),
    );
    (router, document)
}

/// The OpenAPI document of the API.
#[must_use]
pub fn document() -> openapi::OpenApi {
    routes().1
}
