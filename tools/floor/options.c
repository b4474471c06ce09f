/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The command line. Each number has a limit: a slip of a digit must not take the host down.
 */
#define _GNU_SOURCE
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: floor [--guests N] [--slot full|small] [--concurrency K] [--memory SIZE]\n"
    "             [--dir FOLDER] [--linux DIR/NAME] [--hold SECONDS|stdin] [--json]\n"
    "\n"
    "Starts N guests, each the least that is a guest of KVM: fork, private mapping of one memory\n"
    "file, VM, memory slot, vCPU, run to the first port write. Prints how long each took and what\n"
    "host memory they take together, and ends them.\n"
    "\n"
    "  --guests N        how many, 1 to 100000 [100]\n"
    "  --slot full|small one slot over all of guest memory, or over its first 2 MiB [full]\n"
    "  --concurrency K   in the making at once, 1 to 256 [1]\n"
    "  --memory SIZE     of a guest, whole MiB from 2M to 3G [256M]\n"
    "  --dir FOLDER      where the memory file is made; it has no name there [/var/tmp]\n"
    "  --linux DIR/NAME  instead, each guest restores this checkpoint of a Linux that brood made\n"
    "                    on KVM, and runs on; it has taken its time when it begins to run\n"
    "  --hold SECONDS    keep the guests after printing, 0 to 86400 [0];\n"
    "         stdin      until standard input closes\n"
    "  --json            print one JSON object\n";

static _Noreturn void
wrong(const char *option, const char *text, const char *expected)
{
	fprintf(stderr, "floor: --%s %s: %s\n\n%s", option, text, expected, usage);
	exit(2);
}

static long
number(const char *option, const char *text, long least, long most)
{
	char expected[64], *end;
	long value;

	errno = 0;
	value = strtol(text, &end, 10);
	if (errno != 0 || end == text || *end != '\0' || value < least || value > most) {
		snprintf(expected, sizeof(expected), "a number from %ld to %ld belongs here", least,
		    most);
		wrong(option, text, expected);
	}
	return (value);
}

static size_t
mib(const char *text)
{
	static const char expected[] = "a size from 2M to 3G belongs here, such as 256M";
	char *end;
	long value;

	errno = 0;
	value = strtol(text, &end, 10);
	if (errno != 0 || end == text || value < 0 || value > 3072)
		wrong("memory", text, expected);
	if (toupper((unsigned char)*end) == 'G')
		value *= 1024;
	else if (toupper((unsigned char)*end) != 'M')
		wrong("memory", text, expected);
	if (end[1] != '\0' || value < SMALL_SLOT_MIB || value > 3072)
		wrong("memory", text, expected);
	return ((size_t)value);
}

struct options
options_read(int argc, char **argv)
{
	static const struct option names[] = {
		{ "guests", required_argument, NULL, 'g' },
		{ "slot", required_argument, NULL, 's' },
		{ "concurrency", required_argument, NULL, 'c' },
		{ "memory", required_argument, NULL, 'm' },
		{ "dir", required_argument, NULL, 'd' },
		{ "linux", required_argument, NULL, 'l' },
		{ "hold", required_argument, NULL, 'o' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	struct options options = {
		.guests = 100, .concurrency = 1, .memory_mib = 256, .dir = "/var/tmp",
	};
	int name;

	while ((name = getopt_long(argc, argv, "", names, NULL)) != -1)
		switch (name) {
		case 'g':
			options.guests = (unsigned)number("guests", optarg, 1, 100000);
			break;
		case 's':
			options.small = strcmp(optarg, "small") == 0;
			if (!options.small && strcmp(optarg, "full") != 0)
				wrong("slot", optarg, "full or small belongs here");
			break;
		case 'c':
			options.concurrency = (unsigned)number("concurrency", optarg, 1, 256);
			break;
		case 'm':
			options.memory_mib = mib(optarg);
			break;
		case 'd':
			options.dir = optarg;
			break;
		case 'l':
			options.checkpoint = optarg;
			break;
		case 'o':
			options.hold_s = strcmp(optarg, "stdin") == 0 ? HOLD_UNTIL_STDIN_CLOSES :
			    (int)number("hold", optarg, 0, 86400);
			break;
		case 'j':
			options.json = true;
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		default:
			fputs(usage, stderr);
			exit(2);
		}
	if (optind < argc) {
		fprintf(stderr, "floor: what is %s for?\n\n%s", argv[optind], usage);
		exit(2);
	}
	return (options);
}
