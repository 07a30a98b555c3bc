/* Row 3: bytes are destroyed after the record that makes them dead is durable and the epoch re-read.
 *
 * An owner settles a message (DONE) or moves it into a segment of its own (COPY); the old bytes are
 * then unlinked or reused. It may be stopped between the re-read and the destruction for as long as
 * the others like. Messages do not touch each other here, so there is one.
 *
 * Promise: what the newest owner holds as live has its bytes where that owner looks for them.
 *
 * Wrong: BEFORE_REREAD  destroys once the record is durable, before the epoch is re-read
 *        BEFORE_RECORD  re-reads, destroys, and writes the record last
 */
#define NODES 3
#define EPOCHS 4

byte published = 0;
bool copied[EPOCHS + 1], done[EPOCHS + 1];     /* the log of each epoch */
bool bytes[EPOCHS + 1];                        /* are they in the segment of that epoch? */
bool loaded[EPOCHS + 1];                       /* the memory of each epoch's owner: has it read, */
bool live[EPOCHS + 1];                         /* does it hold the message as live, */
byte place[EPOCHS + 1];                        /* and in whose segment */

inline check() {
  assert(!loaded[published] || !live[published] || bytes[place[published]])
}

inline write_record() {
  d_step {
    if
    :: moving -> bytes[mine] = true; copied[mine] = true
    :: else -> done[mine] = true
    fi
  }
}

inline reread() {
  if
  :: published != mine -> goto superseded
  :: published == mine
  fi
}

inline forget() { /* the owner itself looks there no longer */
  atomic {
    if
    :: moving -> place[mine] = mine
    :: else -> live[mine] = false
    fi;
    check()
  }
}

inline destroy() {
  atomic { bytes[old] = false; check() }
}

proctype node() {
  byte mine = 0, log = 0, old = 0;
  bool moving = false;
  do
  :: atomic { mine == 0 && published < EPOCHS -> published++; mine = published; live[mine] = true };
     log = 1;                  /* epoch 0 left the message in its segment */
     do
     :: log < mine ->          /* one log after the other; the newest COPY wins */
        d_step {
          if
          :: copied[log] -> place[mine] = log
          :: else
          fi;
          if
          :: done[log] -> live[mine] = false
          :: else
          fi;
          log++
        }
     :: log == mine -> break
     od;
     atomic { log = 0; loaded[mine] = true; check() }

  :: atomic {
       mine > 0 && live[mine] ->
       old = place[mine];
       if
       :: moving = false
       :: old != mine -> moving = true
       fi
     };
#if defined(BEFORE_REREAD)
     write_record();
     forget();
     destroy();
     reread();
#elif defined(BEFORE_RECORD)
     reread();
     forget();
     destroy();
     write_record();
#else
     write_record();
     reread();
     forget();
     destroy();
#endif
     atomic { old = 0; moving = false }

  :: mine > 0 ->               /* a crash, or noticing at leisure that another owns */
superseded:
     atomic { mine = 0; old = 0; moving = false }

  :: mine == 0 && published == EPOCHS -> break
  od
}

init {
  atomic {
    byte i = 0;
    bytes[0] = true;
    do
    :: i < NODES -> run node(); i++
    :: else -> break
    od
  }
}
