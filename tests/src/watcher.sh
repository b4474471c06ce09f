# Watches over the home of a test: HOME
#
# The test holds the other end of the standard input. When that ends without a word, the test was
# killed: ends all processes of the home and removes it.
home=$1
read -r _ && exit 0

mark=BROOD_STATE_DIR=$home/state
quiet=0
tries=0
while [ $quiet -lt 3 ] && [ $tries -lt 600 ]; do
	tries=$((tries + 1))
	found=
	# Guests, nurseries and stand-ins work in the run folder.
	for process in /proc/[0-9]*; do
		[ "$process/cwd" -ef "$home/state/run" ] && found="$found ${process#/proc/}"
	done
	# Daemons and commands have the state folder in their environment.
	for file in $(grep -lzsxF "$mark" /proc/[0-9]*/environ); do
		process=${file#/proc/}
		found="$found ${process%/environ}"
	done
	if [ -n "$found" ]; then
		quiet=0
		# shellcheck disable=SC2086 # a list of numbers
		kill -KILL $found
	else
		# One may have been started by one that was found before it ended.
		quiet=$((quiet + 1))
	fi
	sleep 0.1
done
exec rm -rf --one-file-system "$home"
