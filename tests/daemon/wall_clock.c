/*
 * The wall clock of one process, which a test may set while the process runs.
 *
 * Preloaded (LD_PRELOAD, which is taken out of the environment at once: no program that it starts has
 * it). $WALL_CLOCK names a file of eight bytes: the nanoseconds by which the clock is ahead. Whatever
 * counts from the host's boot is the kernel's own.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define SECOND 1000000000LL

static const _Atomic int64_t *ahead;

static void begin(void) __attribute__((constructor));

static void begin(void)
{
	const char *path = getenv("WALL_CLOCK");
	int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *mapped = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);

	if (mapped == MAP_FAILED) {
		perror("wall_clock: $WALL_CLOCK");
		_exit(1);
	}
	close(file);
	ahead = mapped;
	unsetenv("LD_PRELOAD");
}

EXPORT int clock_gettime(clockid_t clock, struct timespec *now)
{
	int result = (int)syscall(SYS_clock_gettime, clock, now);

	if (result == 0 && ahead && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
		int64_t all = now->tv_sec * SECOND + now->tv_nsec + atomic_load(ahead);

		now->tv_sec = all / SECOND;
		now->tv_nsec = all % SECOND;
	}
	return result;
}

EXPORT int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec exact;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &exact);
	now->tv_sec = exact.tv_sec;
	now->tv_usec = exact.tv_nsec / 1000;
	return 0;
}

EXPORT time_t time(time_t *stored)
{
	struct timespec exact;

	clock_gettime(CLOCK_REALTIME, &exact);
	if (stored)
		*stored = exact.tv_sec;
	return exact.tv_sec;
}
