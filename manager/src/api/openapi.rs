//! The routes, and the OpenAPI document that tells of them.

use axum::{Json, Router, extract::State, routing::get};
use utoipa::{
    OpenApi,
    openapi::{self, OpenApi as Document},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App, checkpoints, claims, cloud_hypervisor, disks, events, guests, host, memory, metrics,
    pools, resting, restores, sample, under_way, watch,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "brood",
        description = "Restores hundreds to thousands of microVMs from one memory checkpoint, \
            sharing every page that no guest has written.\n\nErrors are problem details (RFC 9457).",
        license(name = "BSD-2-Clause", identifier = "BSD-2-Clause"),
    ),
    components(schemas(
        events::RestoreEvent,
        claims::ClaimEvent,
        resting::ResumeEvent,
        watch::GuestEvent,
        sample::Sample,
    )),
    tags(
        (name = "host", description = "The host and the daemon"),
        (name = "checkpoints", description = "What guests are restored from"),
        (name = "guests", description = "Restored virtual machines"),
        (name = "pools", description = "Guests that wait, stopped, to be claimed"),
        (name = "cloud-hypervisor", description = "Verbs of Cloud Hypervisor's API, for each guest. \
            source_url and destination_url name a bundle, file:///DIR/NAME; a guest ends with its \
            snapshot; prefault, memory_restore_mode and zone_updates are taken and ignored."),
    ),
)]
struct Base;

/// All routes, and the document.
pub(super) fn routes() -> (Router<App>, Document) {
    let v1 = OpenApiRouter::new()
        .routes(routes!(host::host))
        .routes(routes!(host::daemon))
        .routes(routes!(events::events))
        .routes(routes!(checkpoints::list))
        .routes(routes!(checkpoints::show, checkpoints::remove))
        .routes(routes!(checkpoints::verify))
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
        .routes(routes!(under_way::list))
        .routes(routes!(under_way::cancel))
        .routes(routes!(guests::show, guests::destroy))
        .routes(routes!(memory::memory))
        .routes(routes!(guests::ask))
        .routes(routes!(guests::pause))
        .routes(routes!(guests::resume))
        .routes(routes!(guests::suspend))
        .routes(routes!(pools::list, pools::create))
        .routes(routes!(
            pools::show,
            pools::apply,
            pools::change,
            pools::remove
        ))
        .routes(routes!(pools::fill))
        .routes(routes!(pools::evict))
        .routes(routes!(claims::claim))
        .routes(routes!(resting::show, claims::renew, claims::release))
        .routes(routes!(resting::suspend))
        .routes(routes!(resting::resume));
    let of_guest = OpenApiRouter::new()
        .routes(routes!(cloud_hypervisor::ping))
        .routes(routes!(cloud_hypervisor::info))
        .routes(routes!(cloud_hypervisor::pause))
        .routes(routes!(cloud_hypervisor::resume))
        .routes(routes!(cloud_hypervisor::snapshot))
        .routes(routes!(cloud_hypervisor::restore));
    let (router, document) = OpenApiRouter::with_openapi(Base::openapi())
        .routes(routes!(host::health))
        .routes(routes!(metrics::metrics))
        .nest("/api/v1", v1)
        .nest("/guests/{guest}/api/v1", of_guest)
        .split_for_parts();
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
