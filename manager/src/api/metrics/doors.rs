//! Metrics of the daemon's socket and port: open connections and event streams, and those refused
//! for want of room.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Way {
    by: &'static str,
}

/// Those of all ways.
#[derive(Debug, Default)]
pub(super) struct Doors {
    connections: Family<Way, Gauge>,
    connections_max: Family<Way, Gauge>,
    connections_displaced: Family<Way, Counter>,
    event_streams: Family<Way, Gauge>,
    event_streams_refused: Family<Way, Counter>,
}

/// Those of one way.
#[derive(Clone, Debug, Default)]
pub(in crate::api) struct DoorMetrics {
    /// Open connections.
    pub(in crate::api) connections: Gauge,
    /// Idle connections that were closed for others.
    pub(in crate::api) connections_displaced: Counter,
    /// Open event streams.
    pub(in crate::api) event_streams: Gauge,
    /// Event streams that were refused.
    pub(in crate::api) event_streams_refused: Counter,
}

impl Doors {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "http_connections",
            "Open connections, by the way they came",
            self.connections.clone(),
        );
        registry.register(
            "http_connections_max",
            "How many connections there may be at once",
            self.connections_max.clone(),
        );
        registry.register(
            "http_connections_displaced",
            "Idle connections that were closed because all were taken and another client came",
            self.connections_displaced.clone(),
        );
        registry.register(
            "event_streams",
            "Open event streams, by the way their clients came",
            self.event_streams.clone(),
        );
        registry.register(
            "event_streams_refused",
            "Event streams that were refused because as many as there may be were open",
            self.event_streams_refused.clone(),
        );
    }

    /// Those of one way, which is listed with zeros from now on.
    pub(super) fn of(&self, by: &'static str, connections_max: usize) -> DoorMetrics {
        let way = Way { by };
        let max = i64::try_from(connections_max).unwrap_or(i64::MAX);
        self.connections_max.get_or_create(&way).set(max);
        DoorMetrics {
            connections: self.connections.get_or_create_owned(&way),
            connections_displaced: self.connections_displaced.get_or_create_owned(&way),
            event_streams: self.event_streams.get_or_create_owned(&way),
            event_streams_refused: self.event_streams_refused.get_or_create_owned(&way),
        }
    }
}
