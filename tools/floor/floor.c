/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * floor: the least that a host can do to start guests from one memory file.
 *
 * A manager of guests is measured against it: what it takes more than this, in time or in memory,
 * is its own. One process, single-threaded, forks a child for each guest (guest.c); a child that
 * ran its guest says so through a pipe and waits. The clock of a guest runs from before the fork to
 * its report. Host memory is read before the first guest and after the last, each time once it has
 * settled (host.c). Children die with this process, however it ends; it never needs to fork to end
 * them.
 */
#define _GNU_SOURCE
#include "guest.h"
#include "host.h"
#include "linux.h"
#include "options.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define SETTLE_S	60	/* longest wait for memory to settle */
#define REPORT_S	30	/* longest wait for any guest to report */

struct run {
	struct options		options;
	struct guest_parts	parts;
	int			reports[2];	/* the children's pipe */
	int			signals;	/* signalfd of interrupts */
	pid_t			*pids;
	double			*begun;		/* when each was asked for, in seconds */
	double			*took_ms;	/* of those that answered, in the order of answers */
	unsigned		started, answered, failed;
	double			wall_s;
	struct memory		before, after;
	bool			settled;
};

/* Interrupts become readable instead of deadly, so that nothing is left half-done. */
static int
take_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	if (sigprocmask(SIG_BLOCK, &set, NULL) != 0)
		return (-1);
	return (signalfd(-1, &set, SFD_CLOEXEC));
}

/* Whether an interrupt came; forgets it, so that the next one can be told from it. */
static bool
interrupted(const struct run *run)
{
	struct pollfd wake = { .fd = run->signals, .events = POLLIN };
	struct signalfd_siginfo ignored;

	return (poll(&wake, 1, 0) > 0 && read(run->signals, &ignored, sizeof(ignored)) > 0);
}

static bool
start(struct run *run)
{
	unsigned guest = run->started;
	pid_t parent = getpid(), pid;

	run->begun[guest] = host_now();
	pid = fork();
	if (pid < 0) {
		fprintf(stderr, "floor: cannot fork guest %u of %u: %s\n", guest + 1,
		    run->options.guests, strerror(errno));
		return (false);
	}
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);	/* it died before it could be bound to us */
		if (run->options.checkpoint != NULL)
			linux_run(&run->parts, guest, run->reports[1]);
		guest_run(&run->parts, guest, run->reports[1]);
	}
	run->pids[guest] = pid;
	run->started++;
	return (true);
}

/* Waits for one report. False if it was interrupted or none came. */
static bool
take_report(struct run *run)
{
	struct pollfd wake[] = {
		{ .fd = run->reports[0], .events = POLLIN },
		{ .fd = run->signals, .events = POLLIN },
	};
	struct guest_words report;
	int ready;

	ready = poll(wake, 2, REPORT_S * 1000);
	if (ready > 0 && wake[1].revents != 0)
		return (false);
	if (ready <= 0) {
		fprintf(stderr, "floor: no guest reported within %d s\n", REPORT_S);
		return (false);
	}
	if (read(run->reports[0], &report, sizeof(report)) != (ssize_t)sizeof(report))
		return (false);
	if (report.error != 0) {
		fprintf(stderr, "floor: guest %u: %.*s: %s\n", report.guest + 1,
		    (int)sizeof(report.step), report.step, strerror(report.error));
		run->failed++;
		return (true);
	}
	run->took_ms[run->answered++] = (host_now() - run->begun[report.guest]) * 1e3;
	return (true);
}

/* Starts all guests, so many at once as asked. False if not all were made. */
static bool
start_all(struct run *run)
{
	double begin = host_now();

	while (run->answered + run->failed < run->options.guests) {
		unsigned busy = run->started - run->answered - run->failed;

		if (run->started < run->options.guests && busy < run->options.concurrency) {
			if (!start(run))
				return (false);
		} else if (!take_report(run))
			return (false);
	}
	run->wall_s = host_now() - begin;
	return (run->failed == 0);
}

static void
end_all(struct run *run)
{
	for (unsigned i = 0; i < run->started; i++)
		kill(run->pids[i], SIGKILL);
	for (unsigned i = 0; i < run->started; i++)
		while (waitpid(run->pids[i], NULL, 0) < 0 && errno == EINTR)
			;
}

static int
by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return ((x > y) - (x < y));
}

/* By the nearest rank: the least sample such that `percent` of all are not greater. */
static double
percentile(const struct run *run, unsigned percent)
{
	unsigned long rank = ((unsigned long)run->answered * percent + 99) / 100;

	return (rank == 0 ? 0 : run->took_ms[rank - 1]);
}

/* How much more is used, in MiB. */
static double
grown(const struct run *run, enum memory_kind kind)
{
	double kib = (double)(run->after.kib[kind] - run->before.kib[kind]);

	return ((kind == AVAILABLE ? -kib : kib) / 1024);
}

static void
print(struct run *run)
{
	const char *slot = run->options.small ? "small" : "full";
	double taken = grown(run, AVAILABLE), each = 1.0 / run->answered, rest = taken;
	bool json = run->options.json;

	qsort(run->took_ms, run->answered, sizeof(run->took_ms[0]), by_size);
	printf(json ?
	    "{\"guests\":%u,\"slot\":\"%s\",\"memory_mib\":%zu,\"concurrency\":%u,\"wall_s\":%.6f,"
	    "\"restore_ms\":{\"p50\":%.4f,\"p90\":%.4f,\"p99\":%.4f,\"max\":%.4f},"
	    "\"per_guest_mib\":%.6f,\"host_delta_mib\":%.3f,\"settled\":%s,\"breakdown\":{" :
	    "%u guests, %s slot, %zu MiB each, %u at once, in %.2f s\n"
	    "one took, in ms: p50 %.2f, p90 %.2f, p99 %.2f, max %.2f\n"
	    "host memory: %.3f MiB for each guest, %.1f MiB in all (settled: %s)\n",
	    run->answered, slot, run->options.memory_mib, run->options.concurrency, run->wall_s,
	    percentile(run, 50), percentile(run, 90), percentile(run, 99), percentile(run, 100),
	    taken * each, taken, run->settled ? "true" : "false");
	for (int kind = AVAILABLE + 1; kind < MEMORY_KINDS; kind++) {
		double part = grown(run, (enum memory_kind)kind);

		rest -= part;
		printf(json ? "\"%s\":%.6f," : "  %-22s %9.3f\n", memory_names[kind], part * each);
	}
	printf(json ? "\"%s\":%.6f}}\n" : "  %-22s %9.3f\n", "other", rest * each);
	fflush(stdout);
}

/* Keeps the guests as long as asked. False if it was interrupted. */
static bool
hold(const struct run *run)
{
	bool until_closed = run->options.hold_s == HOLD_UNTIL_STDIN_CLOSES;
	struct pollfd wake[] = {
		{ .fd = run->signals, .events = POLLIN },
		{ .fd = until_closed ? STDIN_FILENO : -1, .events = POLLIN },
	};
	char ignored[512];

	while (poll(wake, 2, until_closed ? -1 : run->options.hold_s * 1000) > 0) {
		if (wake[0].revents != 0)
			return (false);
		if (read(STDIN_FILENO, ignored, sizeof(ignored)) <= 0)
			break;
	}
	return (true);
}

/* Measures and prints. False if something failed or was interrupted. */
static bool
measure(struct run *run)
{
	enum settled first, last;

	first = host_settle(SETTLE_S, run->signals, &run->before);
	if (first == INTERRUPTED || !start_all(run))
		return (false);
	last = host_settle(SETTLE_S, run->signals, &run->after);
	if (last == INTERRUPTED)
		return (false);
	run->settled = first == SETTLED && last == SETTLED;
	print(run);
	return (hold(run));
}

int
main(int argc, char **argv)
{
	struct run run = { .options = options_read(argc, argv) };
	struct memory rest;
	bool done, stopped;

	run.parts.memory_bytes = run.options.memory_mib << 20;
	run.parts.slot_bytes = run.options.small ? SMALL_SLOT_MIB << 20 : run.parts.memory_bytes;
	if (guest_open_kvm(&run.parts) != 0)
		return (1);
	if (run.options.checkpoint != NULL) {
		if (linux_open(&run.parts, run.options.checkpoint) != 0)
			return (1);
		run.options.memory_mib = run.parts.memory_bytes >> 20;
	}
	if (!host_fits(run.options.guests, run.parts.slot_bytes >> 20))
		return (1);

	run.signals = take_signals();
	run.pids = calloc(run.options.guests, sizeof(run.pids[0]));
	run.begun = calloc(run.options.guests, sizeof(run.begun[0]));
	run.took_ms = calloc(run.options.guests, sizeof(run.took_ms[0]));
	if (run.signals < 0 || run.pids == NULL || run.begun == NULL || run.took_ms == NULL ||
	    pipe(run.reports) != 0) {
		perror("floor: cannot prepare");
		return (1);
	}
	if (run.options.checkpoint == NULL && guest_make_memory(&run.parts, run.options.dir) != 0)
		return (1);

	done = measure(&run);
	end_all(&run);
	stopped = interrupted(&run);
	if (stopped)
		fprintf(stderr, "floor: stopped; nothing is left running\n");
	/* Who measures next finds the host as it was. A second interrupt cuts this short. */
	host_settle(SETTLE_S, run.signals, &rest);
	return (stopped ? 130 : done ? 0 : 1);
}
