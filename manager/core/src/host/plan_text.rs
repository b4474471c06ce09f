//! Text of `brood plan`.

use std::fmt::Write;

use super::plan::{Case, Plan};

/// Renders the plan as an aligned table with a line on what the figures stand on.
#[must_use]
pub fn render(plan: &Plan) -> String {
    let cases = [
        ("best", "no guest writes more than it must", &plan.best),
        ("expected", "guests at work", &plan.expected),
        ("worst", "every page of every guest is private", &plan.worst),
        (
            "unshared",
            "without brood: all memory for each",
            &plan.unshared,
        ),
    ];
    let size = plan.memory_size;
    let mut text = match &plan.memory_limit {
        None => format!(
            "Guests of {size} that fit in {} of host memory\n",
            plan.host_memory
        ),
        Some(limit) => format!(
            "Guests of {size} that fit in {}, which {} leaves of {} of host memory\n",
            limit.left, limit.name, plan.host_memory
        ),
    };
    if let Some(why) = &plan.sharing.why {
        let _ = writeln!(
            text,
            "They do not share the checkpoint's memory here: {why}. Each takes all its memory."
        );
    }
    text.push('\n');
    let _ = writeln!(
        text,
        "{:9} {:>8}  {:>10}  {:>12}  {:36}  bound by",
        "", "guests", "each", "guest memory", "when"
    );
    for (name, when, case) in cases {
        let _ = writeln!(
            text,
            "{name:9} {:>8}  {:>10}  {:>12}  {when:36}  {}",
            case.guests,
            case.per_guest,
            case.guest_memory,
            bound(case),
        );
    }
    let _ = writeln!(
        text,
        "\nA guest's overhead is {}, and its private memory {} at first and {} at work ({}).",
        plan.cost.overhead,
        plan.cost.pristine_private,
        plan.cost.expected_private,
        plan.cost.source,
    );
    text
}

/// The limit, and how many guests memory would hold if another limit binds.
fn bound(case: &Case) -> String {
    if case.guests_by_memory > case.guests {
        format!("{} (memory holds {})", case.binds, case.guests_by_memory)
    } else {
        case.binds.clone()
    }
}
