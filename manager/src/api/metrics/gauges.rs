//! Gauges: values that are read at each request rather than counted.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    metrics::{family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::api::sample::{Cost, PoolSample, Sample};

type Gauges = Family<Vec<(&'static str, String)>, Gauge<u64, AtomicU64>>;

fn kinds(cost: &Cost) -> [(&'static str, u64); 6] {
    [
        ("private", cost.private_bytes),
        ("shared", cost.shared_bytes),
        ("process", cost.process_bytes),
        ("page_tables", cost.page_table_bytes),
        ("kernel", cost.kernel_bytes),
        ("unshared", cost.memory_bytes),
    ]
}

/// Gauges of a sample.
pub(super) fn of(sample: &Sample) -> Registry {
    let mut registry = Registry::with_prefix("brood");
    let set = |family: &Gauges, labels: &[(&'static str, &str)], value: u64| {
        let labels = labels.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
        family.get_or_create(&labels).set(value);
    };
    let guests = Gauges::default();
    for (state, count) in &sample.guests {
        set(&guests, &[("state", state)], *count);
    }
    registry.register("guests", "Guests by state", guests);

    let living = Gauges::default();
    let measured = Gauges::default();
    let memory = Gauges::default();
    for checkpoint in &sample.checkpoints {
        let name = ("checkpoint", checkpoint.checkpoint.as_str());
        set(&living, &[name], checkpoint.cost.guests);
        let is_measured = checkpoint.cost.kernel_measured;
        set(&measured, &[name], u64::from(is_measured));
        for (kind, bytes) in kinds(&checkpoint.cost) {
            set(&memory, &[name, ("kind", kind)], bytes);
        }
    }
    registry.register(
        "checkpoint_guests",
        "Guests of a checkpoint that live",
        living,
    );
    registry.register(
        "checkpoint_kernel_measured",
        "Whether the kernel's memory for a checkpoint's guests was measured by a density run (1), \
         or is what guests cost in general (0)",
        measured,
    );
    registry.register_with_unit(
        "checkpoint_memory",
        "Memory of a checkpoint's living guests together: private to each, shared with the \
         checkpoint, of their processes, page tables, other memory of the kernel, and what they \
         would take unshared",
        Unit::Bytes,
        memory,
    );

    let entries = Gauges::default();
    let failing = Gauges::default();
    let wanted = Gauges::default();
    let memory = Gauges::default();
    for PoolSample { pool, cost } in &sample.pools {
        let name = ("pool", pool.settings.name.as_str());
        let checkpoint = ("checkpoint", pool.settings.checkpoint.as_str());
        set(&wanted, &[name, checkpoint], pool.settings.policy.hot);
        let failures = pool.failing.as_ref().map_or(0, |failing| failing.tries);
        set(&failing, &[name, checkpoint], failures);
        for (kind, bytes) in kinds(cost) {
            set(&memory, &[name, checkpoint, ("kind", kind)], bytes);
        }
        for (state, count) in [
            ("filling", pool.entries.filling),
            ("hot", pool.entries.hot),
            ("claimed", pool.entries.claimed),
            ("suspended", pool.entries.suspended),
            ("releasing", pool.entries.releasing),
        ] {
            set(&entries, &[name, checkpoint, ("state", state)], count);
        }
    }
    registry.register("pool_entries", "Entries of a pool by state", entries);
    registry.register(
        "pool_failing",
        "Times in a row that a pool could not be filled",
        failing,
    );
    registry.register(
        "pool_hot_wanted",
        "Hot entries that a pool should have",
        wanted,
    );
    registry.register_with_unit(
        "pool_memory",
        "Memory of a pool's living guests together, as of checkpoint_memory",
        Unit::Bytes,
        memory,
    );

    let host = Gauges::default();
    set(&host, &[("kind", "total")], sample.host.memory_total_bytes);
    set(
        &host,
        &[("kind", "available")],
        sample.host.memory_available_bytes,
    );
    registry.register_with_unit("host_memory", "Memory of the host", Unit::Bytes, host);
    let tasks = Gauges::default();
    set(&tasks, &[("kind", "running")], sample.host.tasks);
    set(&tasks, &[("kind", "max")], sample.host.pid_max);
    registry.register("host_tasks", "Tasks of the host, and their limit", tasks);
    registry
}
