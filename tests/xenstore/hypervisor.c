/*
 * The hypervisor under the tests' xenstored, and the kernels of its guests.
 *
 * Debian's xenstored runs unmodified; it is linked with three libraries of Xen, and this file stands
 * for them. It is told on standard input, one line an order, which domains there are:
 *
 *     create 5      the hypervisor knows domain 5
 *     shutdown 5    it has shut itself down (VIRQ_DOM_EXC)
 *     destroy 5     it is gone (VIRQ_DOM_EXC)
 *
 * When xenstored introduces domain 5, it maps that domain's ring: a real page, which both sides use by
 * the protocol of xen/include/public/io/xs_wire.h. The guest's side of it is here. Whoever connects to
 * the Unix socket dom5.sock speaks through the ring and so is guest 5, one client at a time. As in a
 * guest's kernel a request enters the ring whole, or not at all; and when a client goes, what it
 * watched and its transactions go (XS_RESET_WATCHES).
 *
 * All of it happens inside xenstored's own calls, in its only thread: no lock, no second process.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define RING_SIZE 1024u
#define RING_INDEX(position) ((position) & (RING_SIZE - 1))
#define MAX_PAYLOAD 4096u
#define MAX_DOMAINS 32752u
#define RESET_WATCHES 21u
#define RESET_REQUEST 0xfffffffeu /* the req_id of the reset that this kernel sends by itself */
#define VIRQ_PORT 1
#define FIRST_PORT 100 /* the port of domain N is FIRST_PORT + N */

struct ring { /* struct xenstore_domain_interface */
	char req[RING_SIZE];
	char rsp[RING_SIZE];
	volatile uint32_t req_cons, req_prod;
	volatile uint32_t rsp_cons, rsp_prod;
};

struct header { /* struct xsd_sockmsg */
	uint32_t type, req_id, tx_id, len;
};

enum life { ABSENT, RUNNING, SHUT_DOWN };

struct guest {
	unsigned domid;
	struct ring *ring;
	int listener, client;
	uint32_t listening, watching; /* the epoll events now asked for, of each */
	char request[sizeof(struct header) + MAX_PAYLOAD];
	size_t received, pushed; /* of the request at hand: from the client, into the ring */
	struct header reply; /* of the reply that is on its way out of the ring */
	size_t reply_seen; /* how much of it, header included, has left */
	bool leaving; /* the client has gone and the reset is not yet under way */
	bool resetting; /* what comes out of the ring is nobody's until the reset is answered */
	bool reply_blocked; /* the client does not read */
};

static enum life domains[MAX_DOMAINS];
static struct guest *guests[MAX_DOMAINS];
static int events = -1, virq = -1; /* the epoll descriptor that is /dev/xen/evtchn here */

__attribute__((noreturn)) static void die(const char *what)
{
	perror(what);
	_exit(99);
}

/* ------------------------------------------------------------------ the orders */
static void raise_virq(void)
{
	uint64_t one = 1;

	if (write(virq, &one, sizeof(one)) != sizeof(one))
		die("virq");
}

static void obey(const char *order)
{
	char verb[16];
	unsigned domid;

	if (sscanf(order, "%15s %u", verb, &domid) != 2 || domid == 0 || domid >= MAX_DOMAINS)
		die(order);
	if (!strcmp(verb, "create")) {
		domains[domid] = RUNNING;
	} else if (!strcmp(verb, "shutdown")) {
		domains[domid] = SHUT_DOWN;
		raise_virq();
	} else if (!strcmp(verb, "destroy")) {
		domains[domid] = ABSENT;
		raise_virq();
	} else {
		die(order);
	}
}

/* All the orders that are there. Their end is the end of the test: nothing may outlive it. */
static void read_orders(void)
{
	static char line[64];
	static size_t length;
	ssize_t got;

	while ((got = read(STDIN_FILENO, line + length, 1)) == 1) {
		if (line[length] != '\n') {
			if (++length == sizeof(line))
				die("an order is too long");
			continue;
		}
		line[length] = '\0';
		length = 0;
		obey(line);
	}
	if (got == 0)
		_exit(0);
	if (errno != EAGAIN)
		die("standard input");
}

/* ------------------------------------------------------------------ the kernel of a guest */
static void ask_for(struct guest *guest, int fd, uint32_t *asked, uint32_t wanted)
{
	struct epoll_event event = { .events = wanted, .data.ptr = guest };

	if (fd < 0 || *asked == wanted)
		return;
	/* Without any wish a descriptor leaves: a hang-up would be reported all the same, for ever. */
	if (epoll_ctl(events, !wanted ? EPOLL_CTL_DEL : !*asked ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event))
		die("epoll_ctl");
	*asked = wanted;
}

static void hang_up(struct guest *guest)
{
	close(guest->client); /* and with it out of the epoll set */
	guest->client = -1;
	guest->watching = 0;
	guest->reply_blocked = false;
	guest->leaving = true;
}

static size_t request_size(const struct guest *guest)
{
	struct header header;

	if (guest->received < sizeof(header))
		return sizeof(header);
	memcpy(&header, guest->request, sizeof(header));
	return sizeof(header) + header.len;
}

static bool request_complete(const struct guest *guest)
{
	return guest->received >= sizeof(struct header) && guest->received == request_size(guest);
}

/* From the client, never more than the one request. */
static void receive(struct guest *guest)
{
	while (guest->client >= 0 && !request_complete(guest)) {
		size_t size = request_size(guest);
		ssize_t got;

		if (size > sizeof(guest->request)) { /* the kernel says EINVAL to its write() */
			hang_up(guest);
			return;
		}
		got = recv(guest->client, guest->request + guest->received, size - guest->received, MSG_DONTWAIT);
		if (got < 0 && errno == EAGAIN)
			return;
		if (got <= 0)
			hang_up(guest);
		else
			guest->received += got;
	}
}

/* A client that has gone: what it had not finished is dropped, what it had asked is done. */
static void start_reset(struct guest *guest)
{
	struct header reset = { .type = RESET_WATCHES, .req_id = RESET_REQUEST, .len = 1 };

	if (!guest->leaving || request_complete(guest))
		return;
	memcpy(guest->request, &reset, sizeof(reset));
	guest->request[sizeof(reset)] = '\0';
	guest->received = sizeof(reset) + 1;
	guest->leaving = false;
	guest->resetting = true;
}

/* Into the ring, as far as there is room. */
static void push(struct guest *guest)
{
	struct ring *ring = guest->ring;

	while (request_complete(guest)) {
		uint32_t used = ring->req_prod - ring->req_cons, at = RING_INDEX(ring->req_prod);
		size_t room = RING_SIZE - used, count = guest->received - guest->pushed;

		if (count > room)
			count = room;
		if (count > RING_SIZE - at)
			count = RING_SIZE - at;
		if (!count)
			return;
		memcpy(ring->req + at, guest->request + guest->pushed, count);
		__sync_synchronize();
		ring->req_prod += count;
		guest->pushed += count;
		if (guest->pushed == guest->received)
			guest->pushed = guest->received = 0;
	}
}

/* Out of the ring: to the client, or to nobody. */
static void pull(struct guest *guest)
{
	struct ring *ring = guest->ring;
	size_t head = sizeof(struct header);

	guest->reply_blocked = false;
	while (ring->rsp_cons != ring->rsp_prod) {
		uint32_t at = RING_INDEX(ring->rsp_cons);
		size_t count = ring->rsp_prod - ring->rsp_cons, seen = guest->reply_seen;
		size_t left = seen < head ? head - seen : head + guest->reply.len - seen;

		__sync_synchronize();
		if (count > RING_SIZE - at)
			count = RING_SIZE - at;
		if (count > left)
			count = left;
		if (guest->client >= 0) {
			ssize_t sent = send(guest->client, ring->rsp + at, count, MSG_DONTWAIT | MSG_NOSIGNAL);

			if (sent < 0 && errno == EAGAIN) {
				guest->reply_blocked = true;
				return;
			}
			if (sent < 0)
				hang_up(guest);
			else
				count = sent;
		}
		if (seen < head)
			memcpy((char *)&guest->reply + seen, ring->rsp + at, count);
		guest->reply_seen += count;
		ring->rsp_cons += count;
		if (guest->reply_seen < head || guest->reply_seen < head + guest->reply.len)
			continue;
		guest->reply_seen = 0;
		if (guest->reply.type == RESET_WATCHES && guest->reply.req_id == RESET_REQUEST)
			guest->resetting = false;
	}
}

static bool idle(const struct guest *guest)
{
	return guest->client < 0 && !guest->leaving && !guest->resetting;
}

/* Moves all that can be moved, and asks to be woken for the rest. */
static void serve(struct guest *guest)
{
	uint32_t wanted = 0;

	pull(guest);
	if (idle(guest))
		guest->client = accept4(guest->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	receive(guest);
	start_reset(guest);
	push(guest);
	if (!request_complete(guest))
		wanted |= EPOLLIN;
	if (guest->reply_blocked)
		wanted |= EPOLLOUT;
	ask_for(guest, guest->client, &guest->watching, wanted);
	ask_for(guest, guest->listener, &guest->listening, idle(guest) ? EPOLLIN : 0);
}

static void address_of(unsigned domid, struct sockaddr_un *address)
{
	memset(address, 0, sizeof(*address));
	address->sun_family = AF_UNIX;
	snprintf(address->sun_path, sizeof(address->sun_path), "%s/dom%u.sock", getenv("XENSTORED_RUNDIR"), domid);
}

static void boot(unsigned domid)
{
	struct guest *guest = calloc(1, sizeof(*guest));
	struct sockaddr_un address;

	address_of(domid, &address);
	unlink(address.sun_path);
	guest->domid = domid;
	guest->client = -1;
	guest->ring = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	guest->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (guest->ring == MAP_FAILED || guest->listener < 0 ||
	    bind(guest->listener, (struct sockaddr *)&address, sizeof(address)) || listen(guest->listener, 64))
		die("a guest's socket");
	guests[domid] = guest;
	serve(guest);
}

static void halt(struct guest *guest)
{
	struct sockaddr_un address;

	address_of(guest->domid, &address);
	unlink(address.sun_path);
	if (guest->client >= 0)
		close(guest->client);
	close(guest->listener);
	munmap(guest->ring, 4096);
	guests[guest->domid] = NULL;
	free(guest);
}

/* ------------------------------------------------------------------ libxenctrl */
struct dominfo { /* how xc_dominfo_t begins */
	uint32_t domid, ssidref;
	unsigned dying : 1, crashed : 1, shutdown : 1, others : 7;
};

void *xc_interface_open(void *logger, void *dombuild_logger, unsigned flags)
{
	(void)logger, (void)dombuild_logger, (void)flags;
	return domains;
}

int xc_interface_close(void *xch)
{
	(void)xch;
	return 0;
}

/* The caller asks for one domain, the first that is not below. */
int xc_domain_getinfo(void *xch, uint32_t domid, unsigned count, struct dominfo *info)
{
	(void)xch, (void)count;
	read_orders();
	if (domid && (domid >= MAX_DOMAINS || domains[domid] == ABSENT)) {
		errno = ESRCH;
		return -1;
	}
	memset(info, 0, sizeof(*info));
	info->domid = domid;
	info->shutdown = domid && domains[domid] == SHUT_DOWN;
	return 1;
}

struct domaininfo { /* how xc_domaininfo_t begins */
	uint16_t domid, pad;
	uint32_t flags;
};
#define DOMINF_SHUTDOWN (1u << 2)

/* Asked since Xen 4.18, instead of the function above. */
int xc_domain_getinfo_single(void *xch, uint32_t domid, struct domaininfo *info)
{
	struct dominfo found;

	if (xc_domain_getinfo(xch, domid, 1, &found) != 1)
		return -1;
	info->domid = domid;
	info->flags = found.shutdown ? DOMINF_SHUTDOWN : 0;
	return 0;
}

/* ------------------------------------------------------------------ libxenevtchn */
void *xenevtchn_fdopen(void *logger, int fd, unsigned flags)
{
	(void)logger, (void)fd, (void)flags;
	errno = ENOSYS; /* only a live update needs it */
	return NULL;
}

void *xenevtchn_open(void *logger, unsigned flags)
{
	struct epoll_event order = { .events = EPOLLIN, .data.ptr = domains };
	struct epoll_event exception = { .events = EPOLLIN, .data.ptr = &virq };

	(void)logger, (void)flags;
	events = epoll_create1(EPOLL_CLOEXEC);
	virq = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (events < 0 || virq < 0 || fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK) ||
	    epoll_ctl(events, EPOLL_CTL_ADD, STDIN_FILENO, &order) ||
	    epoll_ctl(events, EPOLL_CTL_ADD, virq, &exception))
		die("event channels");
	return &events;
}

int xenevtchn_fd(void *xce)
{
	(void)xce;
	return events;
}

int xenevtchn_bind_virq(void *xce, unsigned number)
{
	(void)xce, (void)number;
	return VIRQ_PORT;
}

int xenevtchn_bind_interdomain(void *xce, uint32_t domid, uint32_t remote_port)
{
	(void)xce, (void)remote_port;
	return FIRST_PORT + domid;
}

int xenevtchn_unbind(void *xce, uint32_t port)
{
	(void)xce, (void)port;
	return 0;
}

int xenevtchn_unmask(void *xce, uint32_t port)
{
	(void)xce, (void)port;
	return 0;
}

/* The port that is up. It is never -1, which xenstored takes for a fault; it looks at every ring anyway. */
int xenevtchn_pending(void *xce)
{
	struct epoll_event event;
	uint64_t count;

	(void)xce;
	if (epoll_wait(events, &event, 1, 0) != 1)
		return FIRST_PORT;
	if (event.data.ptr == domains) {
		read_orders();
		return FIRST_PORT;
	}
	if (event.data.ptr == &virq)
		return read(virq, &count, sizeof(count)) == sizeof(count) ? VIRQ_PORT : FIRST_PORT;
	serve(event.data.ptr);
	return FIRST_PORT + ((struct guest *)event.data.ptr)->domid;
}

/* xenstored has written to the ring of a guest, or read from it. At its start it tells dom0's kernel, which
 * is not there, that it serves from now on: the test is told. */
int xenevtchn_notify(void *xce, uint32_t port)
{
	struct guest *guest = guests[port - FIRST_PORT];

	(void)xce;
	if (guest)
		serve(guest);
	else if (port == FIRST_PORT)
		dprintf(STDOUT_FILENO, "ready\n");
	return 0;
}

/* ------------------------------------------------------------------ libxengnttab */
void *xengnttab_open(void *logger, unsigned flags)
{
	(void)logger, (void)flags;
	return guests;
}

int xengnttab_close(void *xgt)
{
	(void)xgt;
	return 0;
}

int xengnttab_set_max_grants(void *xgt, uint32_t number)
{
	(void)xgt, (void)number;
	return 0;
}

void *xengnttab_map_grant_ref(void *xgt, uint32_t domid, uint32_t reference, int protection)
{
	(void)xgt, (void)reference, (void)protection;
	boot(domid);
	return guests[domid]->ring;
}

int xengnttab_unmap(void *xgt, void *address, uint32_t count)
{
	(void)xgt, (void)count;
	for (unsigned domid = 0; domid < MAX_DOMAINS; domid++)
		if (guests[domid] && guests[domid]->ring == address)
			halt(guests[domid]);
	return 0;
}
