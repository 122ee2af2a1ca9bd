/*
 * The breakpoint: ends or holds provisiond just before or just after one call that changes the world.
 *
 * Preloaded into the daemon (LD_PRELOAD, which is taken out of the environment at once: no program
 * that it starts has it). $BREAKPOINT names a folder:
 *
 *     wanted    absent: nothing is done. Else one line, "RUN HOW WHEN COUNT CALL": of the calls since
 *               RUN stands there, the COUNTth that is called CALL is the breakpoint. HOW is end (the
 *               process is killed) or hold (the thread waits), WHEN is before or after. A COUNT of 0
 *               is none.
 *     calls     every call that does not fail is appended to it, a line each, while there is a `wanted`
 *     reached   is made when the breakpoint is reached
 *     go        a FIFO: who is held goes on when somebody has opened it for writing
 *
 * A call is called what it does and to what: "link disks/.#.part disks/web#.qcow#". Of a path these
 * are the last two names, below the folder that the folder of `wanted` is in, or with a ~ where it is
 * elsewhere; ids and numbers are # in it, so that the same call has the same name in every run.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>
#include <linux/fs.h>

#define EXPORT __attribute__((visibility("default")))
#define LONGEST 4096
#define LEAST_ID 8 /* hex digits and dashes in a row that are an id */

enum when { NEVER, BEFORE, AFTER };

static pid_t daemon_pid;
static char root[LONGEST], wanted_path[LONGEST], calls_path[LONGEST], reached_path[LONGEST],
	go_path[LONGEST];
static atomic_int current_run, seen;
static atomic_bool holds;

/* ---------------------------------------------------------------- the calls themselves */
#define CALLS(X) \
	X(fsync) X(fdatasync) X(link) X(linkat) X(symlink) X(rename) X(renameat) X(renameat2) X(unlink) \
	X(unlinkat) X(rmdir) X(mkdir) X(mkdirat) X(open) X(open64) X(openat) X(openat64) X(chmod) \
	X(fchmod) X(ftruncate) X(ftruncate64) X(ioctl) X(kill) X(write) X(pwrite) X(pwrite64) X(send) \
	X(sendto) X(sendmsg) X(execve) X(execv)

#define DECLARE(name) static __typeof__(&name) real_##name;
CALLS(DECLARE)

static void begin(void) __attribute__((constructor));
static void begin(void)
{
#define FIND(name) real_##name = (__typeof__(&name))dlsym(RTLD_NEXT, #name);
	CALLS(FIND)
	const char *folder = getenv("BREAKPOINT");
	if (folder) {
		snprintf(wanted_path, sizeof wanted_path, "%s/wanted", folder);
		snprintf(calls_path, sizeof calls_path, "%s/calls", folder);
		snprintf(reached_path, sizeof reached_path, "%s/reached", folder);
		snprintf(go_path, sizeof go_path, "%s/go", folder);
		snprintf(root, sizeof root, "%.*s", (int)(strrchr(folder, '/') - folder), folder);
		daemon_pid = getpid();
	}
	unsetenv("LD_PRELOAD");
	unsetenv("BREAKPOINT");
}

/* ---------------------------------------------------------------- names of calls */
static void put(char *name, const char *text)
{
	strncat(name, text, LONGEST - strlen(name) - 1);
}

static bool in_id(char c)
{
	return isxdigit((unsigned char)c) || c == '-';
}

/* Ids and numbers become #. */
static void put_stable(char *name, const char *text)
{
	while (*text) {
		size_t length = 0;
		while (in_id(text[length]))
			length++;
		if (length < LEAST_ID) {
			length = 0;
			while (isdigit((unsigned char)text[length]))
				length++;
		}
		if (length) {
			put(name, "#");
			text += length;
		} else {
			put(name, (char[]){*text++, '\0'});
		}
	}
}

static void put_path(char *name, const char *path)
{
	bool elsewhere = strncmp(path, root, strlen(root));
	if (!elsewhere)
		path += strlen(root);
	const char *from = path + strlen(path);
	for (int slashes = 0; from > path; from--)
		if (from[-1] == '/' && ++slashes == 2)
			break;
	put(name, elsewhere ? " ~" : " ");
	put_stable(name, *from == '/' ? from + 1 : from);
}

static void put_descriptor(char *name, int descriptor)
{
	char link[64], path[LONGEST];
	snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
	ssize_t length = readlink(link, path, sizeof path - 1);
	path[length < 0 ? 0 : length] = '\0';
	put_path(name, path);
}

static void put_at(char *name, int folder, const char *path)
{
	if (folder != AT_FDCWD && path[0] != '/') {
		put_descriptor(name, folder);
		put(name, "/");
		put_stable(name, path);
	} else {
		put_path(name, path);
	}
}

/* What libvirtd is asked to change (remote_protocol.x); false where it is only asked. */
static bool put_procedure(char *name, const unsigned char *packet, size_t size)
{
	static const struct {
		unsigned number;
		const char *name;
	} changes[] = {
		{9, "create"}, {11, "define"}, {12, "destroy"}, {35, "undefine"}, {160, "attach device"},
		{161, "detach device"}, {196, "create"}, {231, "undefine"}, {234, "destroy"}, {350, "define"},
	};
	if (size < 16) /* length, program, version, procedure: four bytes each */
		return false;
	for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
		if (changes[i].number == packet[14] * 256u + packet[15]) {
			put(name, " ");
			put(name, changes[i].name);
			return true;
		}
	}
	return false;
}

/* What is said to QEMU's monitor or to libvirtd; false where nobody listens who could be named, or
 * where it only asks. */
static bool put_said(char *name, int descriptor, const void *data, size_t size)
{
	struct sockaddr_un peer = {.sun_family = AF_UNSPEC};
	socklen_t length = sizeof peer;
	int error = errno;
	int failed = getpeername(descriptor, (struct sockaddr *)&peer, &length);
	errno = error;
	if (failed || peer.sun_family != AF_UNIX || length <= sizeof(sa_family_t) || !peer.sun_path[0])
		return false;
	put_path(name, peer.sun_path);
	static const char execute[] = "\"execute\":\"";
	const char *order = memmem(data, size, execute, sizeof execute - 1);
	if (order) {
		char word[64] = "";
		sscanf(order + sizeof execute - 1, "%63[^\"]", word);
		put(name, " ");
		put(name, word);
		return strncmp(word, "query-", 6) && strncmp(word, "qom-", 4);
	}
	return strstr(peer.sun_path, "libvirt-sock") ? put_procedure(name, data, size) : true;
}

/* ---------------------------------------------------------------- the breakpoint */
static void stop_here(void)
{
	int error = errno;
	bool child = getpid() != daemon_pid;
	if (holds && child)
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* who is held is not left behind */
	syscall(SYS_close, syscall(SYS_openat, AT_FDCWD, reached_path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
	if (!holds) {
		real_kill(daemon_pid, SIGKILL);
		return;
	}
	long fifo;
	while ((fifo = syscall(SYS_openat, AT_FDCWD, go_path, O_RDONLY | O_CLOEXEC)) < 0 && errno == EINTR)
		;
	syscall(SYS_close, fifo);
	if (child)
		prctl(PR_SET_PDEATHSIG, 0);
	errno = error;
}

/* libvirt asks a QEMU of its own what it can do, and keeps the answers: that changes no world. */
static bool is_question(const char *name)
{
	return strstr(name, "/qmp-") || strstr(name, "~qmp-") || strstr(name, "capabilities/");
}

static void record(const char *name)
{
	char line[LONGEST + 1];
	int error = errno;
	if (is_question(name) || syscall(SYS_faccessat, AT_FDCWD, wanted_path, F_OK))
		goto out;
	int length = snprintf(line, sizeof line, "%s\n", name);
	int file = (int)syscall(SYS_openat, AT_FDCWD, calls_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (file >= 0) {
		syscall(SYS_write, file, line, (size_t)length);
		syscall(SYS_close, file);
	}
out:
	errno = error;
}

/* What shall happen to the call of this name. */
static enum when reached(const char *name)
{
	char line[LONGEST] = "", how[8] = "", side[8] = "", call[LONGEST] = "";
	int run = 0, count = 0, error = errno;
	if (is_question(name))
		return NEVER;
	int file = (int)syscall(SYS_openat, AT_FDCWD, wanted_path, O_RDONLY | O_CLOEXEC);
	ssize_t length = file < 0 ? -1 : (ssize_t)syscall(SYS_read, file, line, sizeof line - 1);
	if (file >= 0)
		syscall(SYS_close, file);
	errno = error;
	if (length < 0)
		return NEVER;
	if (sscanf(line, "%d %7s %7s %d %4095[^\n]", &run, how, side, &count, call) != 5 ||
	    strcmp(call, name))
		return NEVER;
	if (atomic_exchange(&current_run, run) != run)
		atomic_store(&seen, 0);
	if (atomic_fetch_add(&seen, 1) + 1 != count)
		return NEVER;
	holds = !strcmp(how, "hold");
	return strcmp(side, "before") ? AFTER : BEFORE;
}

static bool is_daemon(void)
{
	return daemon_pid && getpid() == daemon_pid;
}

/* The program of a command line and, of qemu-img, what it is to do; prlimit hands over to another. */
static void put_command(char *name, char *const argv[])
{
	for (; *argv; argv++) {
		const char *last = strrchr(*argv, '/'), *word = last ? last + 1 : *argv;
		if (strncmp(word, "qemu-", 5))
			continue;
		put(name, " ");
		put(name, word);
		if (!strcmp(word, "qemu-img") && argv[1]) {
			put(name, " ");
			put(name, argv[1]);
		}
		for (; *argv; argv++)
			if (!strcmp(*argv, "none,accel=tcg") || !strcmp(*argv, "none,accel=kvm:tcg"))
				put(name, " to ask what it can do");
		return;
	}
	put(name, " another program");
}

/* The call by which a child becomes another program: the daemon dies, and with AFTER the child goes
 * on as that program, as it does once it was held. */
static void before_exec(const char *program, char *const argv[])
{
	char name[LONGEST] = "exec";
	if (!daemon_pid || getpid() == daemon_pid || access(program, X_OK))
		return;
	put_command(name, argv);
	record(name);
	enum when when = reached(name);
	if (when != NEVER)
		stop_here();
	if (when == BEFORE && !holds)
		_exit(127);
}

/* CALL is made, and the process stops before or after it where that is wanted; PUT says to what. */
#define CUT(type, verb, put_what, call) \
	do { \
		char name[LONGEST] = verb; \
		enum when when = NEVER; \
		if (is_daemon()) { \
			put_what; \
			when = reached(name); \
		} \
		if (when == BEFORE) \
			stop_here(); \
		type result = call; \
		if (result >= 0 && is_daemon()) \
			record(name); \
		if (when == AFTER) \
			stop_here(); \
		return result; \
	} while (0)

/* ---------------------------------------------------------------- files */
EXPORT int fsync(int descriptor) { CUT(int, "fsync", put_descriptor(name, descriptor), real_fsync(descriptor)); }
EXPORT int fdatasync(int descriptor) { CUT(int, "fdatasync", put_descriptor(name, descriptor), real_fdatasync(descriptor)); }
EXPORT int fchmod(int descriptor, mode_t mode) { CUT(int, "fchmod", put_descriptor(name, descriptor), real_fchmod(descriptor, mode)); }
EXPORT int ftruncate(int descriptor, off_t size) { CUT(int, "ftruncate", put_descriptor(name, descriptor), real_ftruncate(descriptor, size)); }
EXPORT int ftruncate64(int descriptor, off64_t size) { CUT(int, "ftruncate", put_descriptor(name, descriptor), real_ftruncate64(descriptor, size)); }
EXPORT int unlink(const char *path) { CUT(int, "unlink", put_path(name, path), real_unlink(path)); }
EXPORT int rmdir(const char *path) { CUT(int, "rmdir", put_path(name, path), real_rmdir(path)); }
EXPORT int mkdir(const char *path, mode_t mode) { CUT(int, "mkdir", put_path(name, path), real_mkdir(path, mode)); }
EXPORT int chmod(const char *path, mode_t mode) { CUT(int, "chmod", put_path(name, path), real_chmod(path, mode)); }
EXPORT int link(const char *from, const char *to) { CUT(int, "link", (put_path(name, from), put_path(name, to)), real_link(from, to)); }
EXPORT int symlink(const char *to, const char *path) { CUT(int, "symlink", put_path(name, path), real_symlink(to, path)); }
EXPORT int rename(const char *from, const char *to) { CUT(int, "rename", (put_path(name, from), put_path(name, to)), real_rename(from, to)); }

EXPORT int unlinkat(int folder, const char *path, int flags)
{
	CUT(int, "unlink", put_at(name, folder, path), real_unlinkat(folder, path, flags));
}

EXPORT int mkdirat(int folder, const char *path, mode_t mode)
{
	CUT(int, "mkdir", put_at(name, folder, path), real_mkdirat(folder, path, mode));
}

EXPORT int linkat(int folder, const char *from, int to_folder, const char *to, int flags)
{
	CUT(int, "link", (put_at(name, folder, from), put_at(name, to_folder, to)),
	    real_linkat(folder, from, to_folder, to, flags));
}

EXPORT int renameat(int folder, const char *from, int to_folder, const char *to)
{
	CUT(int, "rename", (put_at(name, folder, from), put_at(name, to_folder, to)),
	    real_renameat(folder, from, to_folder, to));
}

EXPORT int renameat2(int folder, const char *from, int to_folder, const char *to, unsigned flags)
{
	CUT(int, "rename", (put_at(name, folder, from), put_at(name, to_folder, to)),
	    real_renameat2(folder, from, to_folder, to, flags));
}

static mode_t mode_of(int flags, va_list arguments)
{
	return flags & (O_CREAT | __O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
}

/* Only what may make a file counts. */
#define OPEN(name_of_call, declared, path_of, arguments_of) \
	EXPORT int name_of_call declared \
	{ \
		va_list arguments; \
		va_start(arguments, flags); \
		mode_t mode = mode_of(flags, arguments); \
		va_end(arguments); \
		if (!(flags & O_CREAT)) \
			return real_##name_of_call arguments_of; \
		CUT(int, "create", path_of, real_##name_of_call arguments_of); \
	}

OPEN(open, (const char *path, int flags, ...), put_path(name, path), (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), put_path(name, path), (path, flags, mode))
OPEN(openat, (int folder, const char *path, int flags, ...), put_at(name, folder, path), (folder, path, flags, mode))
OPEN(openat64, (int folder, const char *path, int flags, ...), put_at(name, folder, path), (folder, path, flags, mode))

EXPORT int ioctl(int descriptor, unsigned long request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	void *argument = va_arg(arguments, void *);
	va_end(arguments);
	if ((unsigned)request != (unsigned)FS_IOC_SETFLAGS)
		return real_ioctl(descriptor, request, argument);
	CUT(int, "chattr", put_descriptor(name, descriptor), real_ioctl(descriptor, request, argument));
}

/* ---------------------------------------------------------------- programs and processes */
EXPORT int kill(pid_t pid, int number)
{
	char path[64], program[64] = "";
	if (number == 0 || pid <= 0)
		return real_kill(pid, number);
	snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
	int file = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	if (file >= 0) {
		ssize_t length = syscall(SYS_read, file, program, sizeof program - 1);
		program[length > 0 ? length - 1 : 0] = '\0';
		syscall(SYS_close, file);
	}
	CUT(int, "kill ", put_stable(name, program), real_kill(pid, number));
}

EXPORT int execve(const char *path, char *const argv[], char *const environment[])
{
	before_exec(path, argv);
	return real_execve(path, argv, environment);
}

EXPORT int execv(const char *path, char *const argv[])
{
	before_exec(path, argv);
	return real_execv(path, argv);
}

/* A regular file that is not the log, which is at the standard descriptors. */
static bool is_file(int descriptor)
{
	struct stat status;
	int error = errno;
	bool regular = descriptor > STDERR_FILENO && !fstat(descriptor, &status) && S_ISREG(status.st_mode);
	errno = error;
	return regular;
}

/* ---------------------------------------------------------------- what is written or said */
#define SAY(type, descriptor, data, size, call) \
	do { \
		char said[LONGEST] = ""; \
		if (!is_daemon() || !put_said(said, descriptor, data, size)) \
			return call; \
		CUT(type, "say", put(name, said), call); \
	} while (0)

EXPORT ssize_t write(int descriptor, const void *data, size_t size)
{
	if (is_daemon() && is_file(descriptor))
		CUT(ssize_t, "write", put_descriptor(name, descriptor), real_write(descriptor, data, size));
	SAY(ssize_t, descriptor, data, size, real_write(descriptor, data, size));
}

EXPORT ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset)
{
	CUT(ssize_t, "write", put_descriptor(name, descriptor), real_pwrite(descriptor, data, size, offset));
}

EXPORT ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset)
{
	CUT(ssize_t, "write", put_descriptor(name, descriptor), real_pwrite64(descriptor, data, size, offset));
}

EXPORT ssize_t send(int descriptor, const void *data, size_t size, int flags)
{
	SAY(ssize_t, descriptor, data, size, real_send(descriptor, data, size, flags));
}

EXPORT ssize_t sendto(int descriptor, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length)
{
	SAY(ssize_t, descriptor, data, size, real_sendto(descriptor, data, size, flags, to, length));
}

EXPORT ssize_t sendmsg(int descriptor, const struct msghdr *message, int flags)
{
	const struct iovec none = {0}, *first = message->msg_iovlen ? message->msg_iov : &none;
	SAY(ssize_t, descriptor, first->iov_base, first->iov_len, real_sendmsg(descriptor, message, flags));
}
