"""provisiond turns a golden image into a configured guest. Read it in this order:

provision.py         the story: every step in order, and undo; story.py, what all stories share
new_guest.py         the overlay and the domain that a story makes; destroy.py, their end
data_disk.py         the stories of disks hot-added and taken away
base_jobs.py, overlay_job.py    the stories of golden bases and of overlays
job.py, plan.py      what a job is and how its state may go; where its things are
api/requests.py, guest_config.py    what may be asked; api/message.py, what all messages share
api/replies.py       what is answered; api/views.py makes it of jobs, domains, bases, disks,
                     api/problems.py of errors; api/openapi.py, what callers may read of those
disk/                images: chains, formats, what is refused; golden bases; disks
iso/                 the config ISO: its files; how it is written, checked and destroyed;
                     installation.py, what an installer's ISO is
virt/                domains and disks: the XML; libvirt; both ends of a Xen disk; does KVM work?
guest/               the guest's word: its grammar; how it reaches us; its addresses
images/              golden images as files: baking.py, the guest's script put into one;
                     extraction.py, kernel and root taken out; contents.py, what is in it;
                     verification.py, a guest tried (trial.py) on a host that is thrown
                     away; build.py, one built in phases, by the builder of its recipe.py
xenstore/            xenstore: its wire, a connection, the client, which domid a domain has, what
                     its watches have not told
ports.py             what more than one adapter can do
store.py             the facts, kept (state_file.py is their file, schema.py has its tables,
                     group_commit.py stores together what waits at the same time)
admission.py         may a request become a job?
supervisor.py        jobs become tasks: one a subject, bounded, resumed at start
inventory.py         the domains, bases and disks that are there
api/server.py        HTTP; api/client.py is the other end
api/callers.py, gate.py    who calls, what that caller may do and how much (limits.py)
api/serving.py, tls.py     connections; sockets.py, where the API listens
watchdog.py          do the event loop and all threads go on? systemd is told
daemon.py            everything put together and served; only_one.py, one daemon for each directory;
                     pruning.py, history that is old
cli/                 provisionctl, with display.py, tables.py, progress.py, guest_options.py,
                     build_view.py, reach.py (ssh) and doctor.py

Beside the way: settings.py, errors.py, clock.py, password.py (its hash), core_dump.py (none),
garbage.py, metrics.py, systemd.py, threads.py (blocking calls), process.py (other programs),
sizes.py, terminal.py (what may be shown).
"""

__version__ = "0.1.0"
