//! Page of the daemon in a real browser: actions on it reach real guests, and it shows what happens
//! to guests.

use brood_tests::{
    Browser, Daemon, Home, TOKEN, array,
    browser::{CONTROL, ENTER, TAB},
    crowd, text, until, whole,
};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

/// A daemon with a page, and a browser.
struct Visit {
    // The browser goes before the daemon, and the daemon before its guests.
    browser: Browser,
    daemon: Daemon,
    home: Home,
}

impl Visit {
    /// None where it must be skipped for want of KVM or of a browser.
    fn new() -> Option<Self> {
        let home = Home::with_kvm()?;
        let browser = Browser::start()?;
        let _ = home.demo("demo", "4M");
        let daemon = Daemon::on_a_port(&home);
        Some(Self {
            browser,
            daemon,
            home,
        })
    }

    /// With a Linux guest `a-1`; none where it must be skipped for want of QEMU or of a browser.
    fn to_linux() -> Option<Self> {
        let (home, linux) = Home::with_qemu()?;
        let browser = Browser::start()?;
        home.restore(&linux, 1, "a");
        let daemon = Daemon::on_a_port(&home);
        Some(Self {
            browser,
            daemon,
            home,
        })
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}/", self.daemon.port())
    }

    /// Opens the page and gives it the token that it asks for.
    fn log_in(&self) -> &Browser {
        self.browser.open(&self.address());
        self.browser
            .until("!document.getElementById('login').hidden");
        self.browser.enter("#token", &format!("{TOKEN}{ENTER}"));
        self.browser
            .until("!document.getElementById('main').hidden");
        &self.browser
    }

    fn pool(&self, hot: u32, most: u32) {
        let new = json!({ "name": "web", "checkpoint": "demo", "hot": hot, "max": most });
        let _ = self.daemon.post("/api/v1/pools", &new, 201);
        let _ = self
            .daemon
            .send(Method::POST, "/api/v1/pools/web/fill", 200);
    }

    fn entries(&self, state: &str) -> u64 {
        whole(&self.daemon.get("/api/v1/pools/web")["entries"][state])
    }

    fn restore(&self, guests: u32, prefix: &str) {
        let body = json!({ "checkpoint": "demo", "guests": guests, "prefix": prefix });
        let _ = self.daemon.post("/api/v1/guests", &body, 201);
    }

    /// Checks that the page has asked no host but this daemon, and that the console has no messages
    /// but those about requests with one of these statuses. Removes the pool.
    fn end(self, but: &[&str]) {
        let origin = self.address();
        let requests = self.browser.requests();
        assert!(
            requests.iter().any(|r| r.ends_with("/api/v1/events")),
            "{requests:?}"
        );
        for request in &requests {
            let own = request.starts_with(&origin) || request.starts_with("data:image/svg");
            assert!(own, "the page asked for {request}");
        }
        for line in self.browser.console() {
            let expected = but.iter().any(|status| line.contains(status));
            assert!(expected, "on the console: {line}");
        }
        // Else its nursery may hold on to its lock for a moment when the daemon is gone.
        for pool in array(&self.daemon.get("/api/v1/pools")) {
            let path = format!("/api/v1/pools/{}?force=true", text(&pool["name"]));
            let _ = self.daemon.send(Method::DELETE, &path, 204);
        }
    }
}

/// Whether the words of the pool hold these.
fn pool_says(words: &str) -> String {
    format!("document.querySelector('#pools .words')?.textContent.includes('{words}')")
}

#[test]
fn a_guest_is_claimed_rests_comes_back_and_is_released_on_the_page() {
    let Some(visit) = Visit::new() else { return };
    visit.pool(2, 4);
    let page = visit.log_in();
    page.until(&pool_says("2 of 2 hot · 0 claimed"));

    // By the keyboard alone.
    let mut focused = String::new();
    for _ in 0..30 {
        page.press(TAB);
        let label = page.run("return document.activeElement.ariaLabel ?? ''");
        text(&label).clone_into(&mut focused);
        if focused == "Claim a guest of web" {
            break;
        }
    }
    assert_eq!(focused, "Claim a guest of web", "TAB does not come to it");
    page.press(ENTER);
    page.until(&pool_says("1 claimed"));
    page.until(&pool_says("2 of 2 hot"));
    page.until("document.querySelectorAll('#claims .claim').length === 1");
    assert_eq!(visit.entries("claimed"), 1);
    let guest = page.text("#claims strong");
    let shown = visit.daemon.get(&format!("/api/v1/guests/{guest}"));
    assert_eq!(shown["state"], "running");
    let _ = visit.home.ask(&guest, "poke 0x200000 5");

    // Its token is copied to where a person would put it.
    let origin = visit.address();
    page.devtools(
        "Browser.grantPermissions",
        &json!({ "origin": origin, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"] }),
    );
    page.click("#claims .token button");
    page.until("document.querySelector('#claims .token button').textContent === 'Copied'");
    page.enter("#claim-token", &format!("{CONTROL}v"));
    let pasted = page.run("return document.getElementById('claim-token').value");
    let token = text(&pasted);
    let held = visit.daemon.get(&format!("/api/v1/claims/{token}"));
    assert_eq!(
        (&held["state"], &held["guest"]),
        (&"claimed".into(), &guest.as_str().into())
    );

    let act = |label: &str| page.click(&format!("#claims [aria-label^='{label}']"));
    act("Suspend");
    page.until("document.querySelector('#claims .badge').textContent === 'suspended'");
    page.until(&pool_says("1 suspended"));
    assert_eq!(
        (visit.entries("claimed"), visit.entries("suspended")),
        (0, 1)
    );
    // The claim is this tab's, also when the page is loaded again.
    page.reload();
    page.until("document.querySelector('#claims .badge')?.textContent === 'suspended'");
    // The pools come above it, and move it.
    page.until(&pool_says("1 suspended"));
    act("Resume");
    page.until("document.querySelector('#claims .badge').textContent === 'claimed'");
    let back = page.text("#claims strong");
    assert_eq!(visit.home.peek(&back, 0x20_0000), 5);
    act("Release");
    page.until("document.querySelectorAll('#claims .claim').length === 0");
    page.until(&pool_says("0 claimed"));
    assert_eq!(
        (visit.entries("claimed"), visit.entries("suspended")),
        (0, 0)
    );

    // What is evicted is gone, and another comes.
    let hot = visit.daemon.get("/api/v1/pools/web")["hot_guests"].clone();
    let oldest = text(&hot[0]).to_owned();
    page.until(&format!(
        "document.querySelector('[data-guest=\"{oldest}\"]')"
    ));
    page.click("[aria-label='Evict a hot guest of web']");
    page.until(&format!(
        "!document.querySelector('[data-guest=\"{oldest}\"]')"
    ));
    page.until(&pool_says("2 of 2 hot"));
    let now = visit.daemon.get("/api/v1/pools/web")["hot_guests"].clone();
    assert!(!array(&now).contains(&hot[0]), "{now}");
    visit.end(&[]);
}

#[test]
fn the_page_tells_what_went_wrong_and_what_to_do() {
    let Some(visit) = Visit::new() else { return };
    visit.pool(0, 0);
    visit.browser.open(&visit.address());
    visit
        .browser
        .until("!document.getElementById('login').hidden");
    // A wrong token first.
    visit
        .browser
        .enter("#token", &format!("not-the-token-0123456{ENTER}"));
    visit
        .browser
        .until("!document.getElementById('problem').hidden");
    assert!(visit.browser.text("#problem-detail").contains("token"));
    assert!(visit.browser.text("#problem-hint").contains("--token-file"));
    assert_eq!(
        visit
            .browser
            .run("return document.getElementById('main').hidden"),
        true
    );
    let page = visit.log_in();
    page.until("document.getElementById('problem').hidden");
    assert!(!text(&page.run("return location.href")).contains(TOKEN));

    page.until(&pool_says("at most 0"));
    page.click("[aria-label='Claim a guest of web']");
    page.until("!document.getElementById('problem').hidden");
    let problem = visit
        .daemon
        .post("/api/v1/pools/web/claims", &json!({}), 503);
    assert_eq!(page.text("#problem-detail"), text(&problem["detail"]));
    assert!(page.text("#problem-hint").ends_with(text(&problem["hint"])));
    page.enter("#problem-close", ENTER);
    page.until("document.getElementById('problem').hidden");
    // A token without a claim.
    page.enter("#claim-token", &format!("{}{ENTER}", "5".repeat(32)));
    page.until("!document.getElementById('problem').hidden");
    assert!(
        page.text("#problem-detail")
            .contains("no claim with this token")
    );
    visit.end(&["401", "503", "404"]);
}

#[test]
fn the_curve_and_the_strips_show_what_guests_cost() {
    let Some(visit) = Visit::new() else { return };
    let page = visit.log_in();
    page.until("document.getElementById('no-guests').textContent.startsWith('No guests.')");
    // Nothing is drawn of no guests, and nothing left empty for it.
    let height = "document.querySelector('#curve').getBoundingClientRect().height";
    assert_eq!(page.run(&format!("return {height}")), 0);
    assert!(page.text("#no-curve").starts_with("No guests yet"));
    let points = |n: u32| format!("document.querySelectorAll('#curve .point').length >= {n}");
    let guests =
        |n: u32| format!("document.querySelector('[data-name=Guests] dd')?.textContent === '{n}'");
    for (step, total) in [(1, 3), (2, 6), (3, 9)] {
        visit.restore(3, &format!("s{step}"));
        page.until(&guests(total));
        page.until(&points(step));
    }
    assert_eq!(
        page.run("return document.getElementById('no-curve').hidden"),
        true
    );
    // What they take is what the daemon tells: all of it, with the kernel's part.
    let metrics = || {
        let response = visit
            .daemon
            .request(Method::GET, "/metrics")
            .send()
            .unwrap();
        response.text().unwrap()
    };
    let total: u64 = metrics()
        .lines()
        .filter(|line| line.starts_with("brood_checkpoint_memory_bytes"))
        .filter(|line| {
            ["private", "process", "page_tables", "kernel"]
                .iter()
                .any(|kind| line.contains(&format!("kind=\"{kind}\"")))
        })
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert!(total >= 9 * (768 << 10), "{total}");
    let each = format!("{:.0} KiB each, all told", total as f64 / 9.0 / 1024.0);
    let tile = "document.querySelector('[data-name=\"Memory they take\"] .more').textContent";
    page.until(&format!("{tile} === '{each}'"));
    assert!(page.text("#kernel").contains("brood density measures it"));
    // The curve ends at what the daemon tells.
    let told = page.run("return document.getElementById('curve').getAttribute('aria-label')");
    assert!(text(&told).starts_with("9 guests take "), "{told}");
    assert!(text(&told).ends_with(" 36.0 MiB"), "{told}");

    // A page that a guest writes appears where it lies: here at half of its memory.
    let path = "document.querySelector('[data-guest=s1-1] path.private')?.getAttribute('d')";
    page.until(path);
    let memory = || visit.daemon.get("/api/v1/memory?guests=s1-1&cells=96")[0].clone();
    let cells = array(&memory()["map"]["private"]).len();
    let half = 512 / whole(&memory()["map"]["cell_pages"]);
    let at = half as f64 * 96.0 / cells as f64;
    let marked = format!("{path}.includes('M{at:.2} ')");
    assert_eq!(page.run(&format!("return {marked}")), false);
    let _ = visit.home.ask("s1-1", "poke 0x200000 7");
    page.until(&marked);
    let kib = whole(&memory()["private_bytes"]) / 1024;
    let label = "document.querySelector('[data-guest=s1-1] .strip').getAttribute('aria-label')";
    page.until(&format!(
        "{label}.startsWith('{kib} KiB private') || {label}.startsWith('{kib}.0 KiB private')"
    ));

    // Whatever is done elsewhere is seen.
    let state = |of: &str| {
        format!("document.querySelector('[data-guest=s1-1] .badge').textContent === '{of}'")
    };
    let _ = visit.home.brood(&["pause", "s1-1"]).ok();
    page.until(&state("paused"));
    page.click("[aria-label='Resume s1-1']");
    page.until(&state("running"));
    page.click("[aria-label='Destroy s1-1']");
    page.click("dialog [value=no]");
    assert_eq!(visit.daemon.get("/api/v1/guests/s1-1")["state"], "running");
    page.click("[aria-label='Destroy s1-1']");
    page.click("dialog [value=yes]");
    page.until("!document.querySelector('[data-guest=s1-1]')");
    let _ = visit.daemon.send(Method::GET, "/api/v1/guests/s1-1", 404);
    visit.end(&[]);
}

#[test]
fn guests_are_sorted_chosen_and_destroyed_many_at_once() {
    let Some(visit) = Visit::new() else { return };
    visit.restore(2, "b");
    visit.restore(10, "long-name-of-a-guest-with");
    visit.restore(1, "a");
    let page = visit.log_in();
    let names = || {
        let names = "[...document.querySelectorAll('#rows tr')].map((row) => row.dataset.guest)";
        let names = page.run(&format!("return {names}"));
        array(&names)
            .iter()
            .map(|name| text(name).to_owned())
            .collect::<Vec<_>>()
    };
    page.until("document.querySelectorAll('#rows tr').length === 13");
    assert_eq!((names()[0].as_str(), names()[1].as_str()), ("a-1", "b-1"));
    let sort = |column: &str| page.click(&format!("thead [data-sort={column}]"));
    sort("name");
    assert_eq!(names()[0], "long-name-of-a-guest-with-10");
    sort("created_at");
    assert_eq!(names()[0], "a-1", "the youngest is the first");
    assert_eq!(
        page.run("return document.querySelector('[data-sort=created_at]').parentElement.ariaSort"),
        "ascending"
    );
    let age = page.text("[data-guest=a-1] [data-label=Age]");
    assert!(age.ends_with(" s"), "{age}");
    // No name is broken.
    let heights = "[...document.querySelectorAll('#rows th')].map((cell) => cell.getClientRects().length \
        && Math.round(cell.getBoundingClientRect().height))";
    let heights = page.run(&format!("return {heights}"));
    let lowest = array(&heights).iter().map(whole).min().unwrap();
    assert!(
        array(&heights)
            .iter()
            .all(|height| whole(height) <= lowest + 2),
        "{heights}"
    );

    page.enter("#search", "b-");
    page.until("document.querySelectorAll('#rows tr').length === 2");
    page.click("#select");
    assert_eq!(page.text("#destroy-selected button"), "Destroy 2 selected");
    page.click("[data-guest=b-2] input");
    assert_eq!(page.text("#destroy-selected button"), "Destroy 1 selected");
    page.click("#destroy-selected button");
    page.click("dialog [value=no]");
    assert_eq!(visit.home.list().len(), 13);
    page.click("[data-guest=b-2] input");
    page.click("#destroy-selected button");
    page.click("dialog [value=yes]");
    page.until("!document.getElementById('no-guests').hidden");
    assert_eq!(page.text("#no-guests"), "No guest is like that.");
    let left = visit.home.names("running");
    assert_eq!(left.len(), 11);
    assert!(left.iter().all(|name| !name.starts_with("b-")), "{left:?}");
    visit.end(&[]);
}

#[test]
fn a_hundred_guests_do_not_fill_the_document() {
    let _turn = crowd();
    let Some(visit) = Visit::new() else { return };
    let page = visit.log_in();
    let elements = || whole(&page.run("return document.querySelectorAll('#rows *').length"));
    visit.restore(30, "few");
    page.until("document.querySelectorAll('#rows tr').length === 25");
    let with_few = elements();
    visit.restore(100, "many");
    page.until("document.getElementById('range').textContent === '1–25 of 130'");
    assert!(elements() <= with_few, "{} after {with_few}", elements());
    let first = || page.text("#rows tr:first-child th");
    assert_eq!(first(), "few-1");
    page.enter("#next", ENTER);
    page.until("document.getElementById('range').textContent === '26–50 of 130'");
    assert_eq!(first(), "few-26");
    page.enter("#search", "many-77");
    page.until("document.querySelectorAll('#rows tr').length === 1");
    assert_eq!(first(), "many-77");
    let _ = visit.home.brood(&["pause", "many-77", "few-3"]).ok();
    let all = [CONTROL, "a", "\u{e000}\u{e003}"].concat();
    page.enter("#search", &all);
    page.enter("#state", "paused");
    page.until("document.querySelectorAll('#rows tr').length === 2");
    page.enter("#search", "nobody");
    page.until("!document.getElementById('no-guests').hidden");
    assert_eq!(page.text("#no-guests"), "No guest is like that.");
    visit.end(&[]);
}

/// Finds texts of the page whose contrast with what is behind them is less than 4.5 to 1 (WCAG 2.2,
/// 1.4.3), those of disabled buttons but, and tells how many it looked at.
const CONTRAST: &str = r"
const rgba = (text) => { const n = text.match(/[\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const luminance = (c) => c.slice(0, 3).map((v) => v / 255)
  .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const c = rgba(getComputedStyle(e).backgroundColor);
    if (c[3] === 1) return c;
  }
  throw new Error('nothing is behind');
};
const poor = [];
let looked = 0;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const element = node.parentElement;
  if (!node.textContent.trim() || !element.checkVisibility() || element.closest(':disabled')) continue;
  const style = getComputedStyle(element);
  const ink = rgba(element.closest('svg') ? style.fill : style.color);
  const [a, b] = [luminance(ink), luminance(behind(element))].sort((x, y) => y - x);
  const contrast = (a + 0.05) / (b + 0.05);
  looked += 1;
  if (contrast < 4.5) poor.push(`${node.textContent.trim()}: ${contrast.toFixed(2)}`);
}
return { looked, poor, ground: behind(document.body).join() };
";

#[test]
fn the_page_is_legible_in_the_dark_and_in_the_light() {
    let Some(visit) = Visit::new() else { return };
    visit.pool(1, 2);
    visit.restore(2, "g");
    let page = visit.log_in();
    page.click("[aria-label='Claim a guest of web']");
    page.until("document.querySelectorAll('#claims .claim').length === 1");
    page.until("document.querySelectorAll('#curve text').length > 3");
    let _ = visit.home.brood(&["pause", "g-1"]).ok();
    let _ = visit.home.brood(&["ask", "g-2", "crash"]).code();
    page.until(
        "[...document.querySelectorAll('#rows .badge')].some((b) => b.textContent === 'dead')",
    );
    // An error, too.
    page.enter("#claim-token", &format!("nobody's{ENTER}"));
    page.until("!document.getElementById('problem').hidden");
    let look = |scheme: &str| {
        page.prefer(scheme);
        page.run(CONTRAST)
    };
    let legible = |seen: &Value| {
        assert!(whole(&seen["looked"]) > 50, "{seen}");
        assert_eq!(seen["poor"], json!([]), "{seen}");
        text(&seen["ground"]).to_owned()
    };
    let (light, dark) = (legible(&look("light")), legible(&look("dark")));
    assert_ne!(light, dark);
    // What is chosen counts for more than what the system has, and is remembered.
    let choose = |until: &str| {
        page.click("#theme");
        page.until(&format!(
            "document.getElementById('theme').textContent === 'Colours: {until}'"
        ));
    };
    choose("light");
    assert_eq!(legible(&look("dark")), light);
    page.reload();
    page.until("!document.getElementById('main').hidden");
    page.until("document.querySelectorAll('#rows tr').length > 2");
    assert_eq!(page.run(CONTRAST)["ground"], light.as_str());
    choose("dark");
    assert_eq!(look("light")["ground"], dark.as_str());
    choose("auto");
    assert_eq!(look("light")["ground"], light.as_str());
    visit.end(&["404"]);
}

#[test]
fn the_page_comes_back_by_itself_with_the_daemon() {
    let Some(visit) = Visit::new() else { return };
    visit.restore(1, "old");
    let page = visit.log_in();
    page.until("document.querySelector('[data-guest=old-1]')");
    let Visit {
        browser,
        daemon,
        home,
    } = visit;
    let port = daemon.port();
    daemon.signal(Signal::SIGKILL);
    let _ = daemon.wait();
    browser.until("document.getElementById('link').dataset.state === 'gone'");
    // Actions meanwhile are shown as failed.
    browser.click("[aria-label='Pause old-1']");
    browser
        .until("document.getElementById('problem-detail').textContent.includes('does not answer')");
    let _ = home.brood(&["destroy", "old-1"]).ok();
    home.restore(&home.named("demo"), 2, "new");
    let daemon = Daemon::on_port(&home, port);
    browser.until("document.getElementById('link').dataset.state === 'live'");
    browser.until("document.querySelectorAll('#rows tr').length === 2");
    browser.until("document.querySelector('[data-guest=new-2]') && !document.querySelector('[data-guest=old-1]')");
    browser.until("document.getElementById('problem').hidden");
    // And lives on.
    let _ = daemon.send(Method::POST, "/api/v1/guests/new-1/pause", 200);
    browser.until("document.querySelector('[data-guest=new-1] .badge').textContent === 'paused'");
    until("the counters to go on", || {
        let state =
            browser.run("return document.querySelector('[data-name=Guests] .more')?.textContent");
        state.as_str()?.contains("1 paused").then_some(())
    });
}

#[test]
fn a_command_is_run_in_a_guest_on_the_page() {
    let Some(visit) = Visit::to_linux() else {
        return;
    };
    let page = visit.log_in();
    page.enter("#run-guest", "a-1");
    page.enter(
        "#run-command",
        &format!("hostname; echo '<b>x</b>'; exit 3{ENTER}"),
    );
    page.until("document.getElementById('run-code').textContent === 'ended with code 3'");
    assert_eq!(page.text("#run-output").trim(), "a-1\n<b>x</b>");
    // What it says is there while it runs; Cancel kills it.
    let clear = || {
        let _ = page.run("document.getElementById('run').reset()");
        page.enter("#run-guest", "a-1");
    };
    clear();
    page.enter(
        "#run-command",
        &format!("while :; do echo going; sleep 0.3; done{ENTER}"),
    );
    page.until("document.getElementById('run-output').textContent.includes('going\\ngoing')");
    assert_eq!(page.text("#run-code"), "running");
    page.click("#run-cancel");
    page.until("document.getElementById('run-code').textContent === 'cancelled'");
    until("its end", || {
        let line = "ps -o args | grep -c '^[/]bin/sh -c'";
        let ran = visit
            .home
            .brood(&["exec", "a-1", "--", "busybox", "sh", "-c", line]);
        (ran.stdout.trim() == "0").then_some(())
    });
    // What goes wrong is told as any other problem.
    clear();
    page.enter("#run-guest", "b-1");
    page.enter("#run-command", &format!("true{ENTER}"));
    page.until("document.getElementById('run-code').textContent === 'not run'");
    page.until("document.getElementById('problem-detail').textContent.includes('a-1b-1')");
    visit.end(&[]);
}
