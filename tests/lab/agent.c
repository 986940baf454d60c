/* PID 1 of L1: runs one command for the launcher and reports how it ended.
 *
 * Owns the command's process, its pipes or pty, one copying process per stream, and the reaping of orphans. It refuses
 * nothing: the launcher is trusted. Invariant: "exit" is said after the last byte of output went into its port, together
 * with how many bytes that were, so the launcher knows when it has them all.
 *
 * C because it is on the way of every boot: a Python of the same shape took three seconds to start under emulation.
 *
 * Control port, launcher to agent: "order LENGTH\n" and LENGTH bytes of strings that each end in NUL: directory, three
 * letters (per stream: t terminal, p pipe), rows, columns, number of arguments, arguments, environment. Later lines:
 * "signal N", "size ROWS COLUMNS", "close FD". Agent to launcher: "booted", "started", "exit STATUS OUT ERR" (STATUS
 * negative: the signal that ended the command; OUT, ERR: bytes).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CONTROL = 1, FIRST_STREAM = 2 };
enum { CHUNK = 65536, PIPE_BYTES = 1 << 20 };
/* How long output may stay open after the command's end (something that it left behind may hold it) without a byte
 * coming before the lab stops listening. */
static const double LINGER_S = 1.0;

struct order {
	char *directory;
	char *streams;
	int rows, columns;
	char **arguments, **environment;
};

/* Shared with the copying processes. `moved` counts bytes written to the port; `last` is when. */
struct stream {
	unsigned long long moved;
	double last;
	pid_t copier;
};
static struct stream *streams;
static int control;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what)
{
	fprintf(stderr, "lab: agent: %s: %s\n", what, strerror(errno));
	exit(1); /* PID 1's end is a kernel panic, which the launcher reports with this line above it */
}

static int write_all(int fd, const char *data, size_t size)
{
	while (size > 0) {
		ssize_t n = write(fd, data, size);
		if (n < 0 && errno == EAGAIN) {
			struct pollfd p = {.fd = fd, .events = POLLOUT};
			poll(&p, 1, -1);
			continue;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		data += n;
		size -= (size_t)n;
	}
	return 0;
}

static void say(const char *format, ...)
{
	char line[128];
	va_list list;
	va_start(list, format);
	int n = vsnprintf(line, sizeof line, format, list);
	va_end(list);
	if (write_all(control, line, (size_t)n) < 0)
		die("control port");
}

/* Opens the virtio-console port of that number, once the driver has found it and the launcher's end is connected:
 * before that a read would look like the end of the stream. */
static int open_port(int number, int flags)
{
	static const struct timespec pause = {.tv_nsec = 2000000};
	for (;; nanosleep(&pause, NULL)) {
		char path[32];
		int fd = -1;
		for (int device = 0; device < 4 && fd < 0; device++) {
			snprintf(path, sizeof path, "/dev/vport%dp%d", device, number);
			fd = open(path, flags | O_CLOEXEC);
		}
		if (fd < 0)
			continue;
		struct pollfd p = {.fd = fd, .events = POLLIN};
		while (poll(&p, 1, 0) >= 0 && (p.revents & POLLHUP))
			nanosleep(&pause, NULL);
		return fd;
	}
}

/* One line of the control port, without its end. */
static void read_line(char *line, size_t size)
{
	size_t used = 0;
	for (;;) {
		char c;
		ssize_t n = read(control, &c, 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			die("control port");
		if (c == '\n')
			break;
		if (used + 1 < size)
			line[used++] = c;
	}
	line[used] = 0;
}

static char *next(char **cursor)
{
	char *string = *cursor;
	*cursor += strlen(string) + 1;
	return string;
}

static struct order read_order(void)
{
	struct order order;
	char line[64];
	read_line(line, sizeof line);
	size_t size = strtoul(line + strlen("order "), NULL, 10);
	char *data = malloc(size + 1), *cursor = data, *end = data + size;
	for (size_t got = 0; got < size;) {
		ssize_t n = read(control, data + got, size - got);
		if (n <= 0)
			die("order");
		got += (size_t)n;
	}
	*end = 0;
	order.directory = next(&cursor);
	order.streams = next(&cursor);
	order.rows = atoi(next(&cursor));
	order.columns = atoi(next(&cursor));
	int count = atoi(next(&cursor));
	order.arguments = calloc((size_t)count + 1, sizeof(char *));
	for (int i = 0; i < count; i++)
		order.arguments[i] = next(&cursor);
	order.environment = calloc(size + 1, sizeof(char *));
	for (int i = 0; cursor < end; i++)
		order.environment[i] = next(&cursor);
	return order;
}

/* Copies until either end closes; what goes to a port is counted. */
static void copy(int from, int to, struct stream *stream)
{
	static char buffer[CHUNK];
	for (;;) {
		ssize_t n = read(from, buffer, sizeof buffer);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) /* a pty whose last process is gone answers EIO: an end like any other */
			return;
		stream->last = now();
		if (write_all(to, buffer, (size_t)n) < 0)
			return;
		stream->moved += (unsigned long long)n;
		stream->last = now();
	}
}

/* Starts the process that joins a port and the command's end of a stream. */
static void start_copy(int number, int port, int end)
{
	pid_t pid = fork();
	if (pid < 0)
		die("fork");
	if (pid > 0) {
		streams[number].copier = pid;
		return;
	}
	/* Nothing else may be held here: a pipe's end is seen only when its last holder is gone. */
	dup2(port, 0);
	dup2(end, 1);
	close_range(3, ~0U, 0);
	signal(SIGPIPE, SIG_IGN);
	if (number == 0)
		copy(0, 1, &streams[0]);
	else
		copy(1, 0, &streams[number]);
	_exit(0);
}

static void set_size(int terminal, int rows, int columns)
{
	struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};
	ioctl(terminal, TIOCSWINSZ, &size);
}

/* In the forked child: becomes the command, or exits 126 or 127 as a shell does. */
static void become(const struct order *order, const int ends[3], int terminal)
{
	/* As a service manager sets it; the kernel's own hard limit for its first process is 4096. */
	static const struct rlimit files = {.rlim_cur = 1024, .rlim_max = 524288};
	sigset_t none;
	setrlimit(RLIMIT_NOFILE, &files);
	sigemptyset(&none);
	setsid();
	if (terminal >= 0)
		ioctl(terminal, TIOCSCTTY, 0);
	for (int fd = 0; fd < 3; fd++)
		dup2(ends[fd], fd);
	close_range(3, ~0U, 0);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (chdir(order->directory) < 0) {
		fprintf(stderr, "lab: %s: %s in L1\n", order->directory, strerror(errno));
		_exit(126);
	}
	clearenv();
	for (char **variable = order->environment; *variable; variable++)
		putenv(*variable);
	execvp(order->arguments[0], order->arguments);
	int error = errno;
	fprintf(stderr, "lab: %s: %s in L1\n", order->arguments[0], strerror(error));
	_exit(error == ENOENT ? 127 : 126);
}

/* Starts the command and its copying processes; *master is the pty's or -1. */
static pid_t start(const struct order *order, const int ports[3], int *master)
{
	int terminal = -1, ends[3], ours[3];
	*master = -1;
	if (strchr(order->streams, 't')) {
		if (openpty(master, &terminal, NULL, NULL, NULL) < 0)
			die("openpty");
		set_size(*master, order->rows, order->columns);
		fcntl(*master, F_SETFD, FD_CLOEXEC);
	}
	for (int fd = 0; fd < 3; fd++) {
		int two[2];
		if (order->streams[fd] == 't') {
			ends[fd] = terminal;
			ours[fd] = *master;
			continue;
		}
		if (pipe(two) < 0)
			die("pipe");
		fcntl(two[0], F_SETPIPE_SZ, PIPE_BYTES);
		ends[fd] = two[fd == 0 ? 0 : 1];
		ours[fd] = two[fd == 0 ? 1 : 0];
	}
	pid_t pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0)
		become(order, ends, terminal);
	for (int fd = 0; fd < 3; fd++)
		/* A terminal has one output: standard error's goes with standard output's unless that one is a pipe. */
		if (fd < 2 || order->streams[2] == 'p' || order->streams[1] == 'p')
			start_copy(fd, ports[fd], ours[fd]);
	for (int fd = 0; fd < 3; fd++) {
		if (order->streams[fd] == 't')
			continue;
		close(ends[fd]);
		close(ours[fd]);
	}
	if (terminal >= 0)
		close(terminal);
	return pid;
}

/* Reaps all that has ended; true, and *status, if the command was among it. */
static int reap(pid_t command, int *status)
{
	int code, found = 0;
	pid_t pid;
	while ((pid = waitpid(-1, &code, WNOHANG)) > 0) {
		for (int i = 0; i < 3; i++)
			if (streams[i].copier == pid)
				streams[i].copier = 0;
		if (pid != command)
			continue;
		found = 1;
		*status = WIFSIGNALED(code) ? -WTERMSIG(code) : WEXITSTATUS(code);
	}
	return found;
}

static void obey(pid_t command, int master)
{
	char line[64];
	int a, b;
	read_line(line, sizeof line);
	if (sscanf(line, "signal %d", &a) == 1)
		kill(command, a);
	else if (sscanf(line, "size %d %d", &a, &b) == 2 && master >= 0)
		set_size(master, a, b);
	else if (sscanf(line, "close %d", &a) == 1 && a > 0 && a < 3 && streams[a].copier > 0)
		kill(streams[a].copier, SIGKILL); /* the command's next write meets a closed pipe */
}

/* Forwards what the launcher says until the command ends; returns its status. */
static int serve(pid_t command, int master, int signals)
{
	struct pollfd polled[2] = {{.fd = signals, .events = POLLIN}, {.fd = control, .events = POLLIN}};
	int status;
	while (!reap(command, &status)) {
		struct signalfd_siginfo info;
		if (poll(polled, 2, -1) < 0 && errno != EINTR)
			die("poll");
		if (polled[0].revents && read(signals, &info, sizeof info) < 0)
			die("signalfd");
		if (polled[1].revents)
			obey(command, master);
	}
	return status;
}

/* Waits until the outputs are closed, or nothing has come for LINGER_S. */
static void drain(int signals)
{
	double ended = now();
	for (;;) {
		int status, open = 0;
		struct signalfd_siginfo info;
		struct pollfd p = {.fd = signals, .events = POLLIN};
		reap(-1, &status);
		for (int i = 1; i < 3; i++) {
			double quiet = now() - (streams[i].last > ended ? streams[i].last : ended);
			open |= streams[i].copier > 0 && quiet < LINGER_S;
		}
		if (!open)
			return;
		if (poll(&p, 1, 50) > 0 && read(signals, &info, sizeof info) < 0)
			die("signalfd");
	}
}

/* Keeps a virtual machine with one idle CPU for as long as L1 lives. KVM patches kernel code when its first machine is
 * made and its last one goes, and as local APICs are turned on; the emulator now and then loses the race with another
 * CPU that runs that code (an int3 that nobody knows). With this machine there, the code is patched once, and while one
 * CPU alone is online. Without /dev/kvm there is nothing to patch. */
static void keep_machine(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int machine = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
	if (machine < 0)
		return;
	fcntl(machine, F_SETFD, FD_CLOEXEC);
	if (ioctl(machine, KVM_CREATE_IRQCHIP) == 0 && ioctl(machine, KVM_CREATE_VCPU, 0) < 0)
		perror("lab: agent: the kept machine's CPU");
}

/* The kernel was started with maxcpus=1: all that boot patches was patched without a race. */
static void start_other_cpus(void)
{
	for (int cpu = 1;; cpu++) {
		char path[64];
		snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/online", cpu);
		int fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0)
			return;
		if (write_all(fd, "1", 1) < 0)
			die(path);
		close(fd);
	}
}

int main(void)
{
	sigset_t mask;
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	int signals = signalfd(-1, &mask, SFD_CLOEXEC), ports[3], master;
	streams = mmap(NULL, 3 * sizeof *streams, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (signals < 0 || streams == MAP_FAILED)
		die("start");

	keep_machine();
	start_other_cpus();
	control = open_port(CONTROL, O_RDWR);
	/* A blocking write to a port spins in the driver, with a lock held, for as long as the caller does not read. */
	for (int fd = 0; fd < 3; fd++)
		ports[fd] = open_port(FIRST_STREAM + fd, fd == 0 ? O_RDONLY : O_WRONLY | O_NONBLOCK);
	say("booted\n");
	struct order order = read_order();
	pid_t command = start(&order, ports, &master);
	for (int fd = 0; fd < 3; fd++)
		close(ports[fd]);
	say("started\n");
	int status = serve(command, master, signals);
	drain(signals);
	sync();
	say("exit %d %llu %llu\n", status, streams[1].moved, streams[2].moved);
	for (;;) /* the launcher ends the machine */
		pause();
}
