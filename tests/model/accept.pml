/* Row 1: whoever accepts and whoever takes over cannot miss each other.
 *
 * The owner writes the message, re-reads the epoch, then answers 250; the taker publishes its epoch,
 * then reads the logs. Every arrow below is a step of its own, so any node may be stopped between
 * any two of them for as long as the others like.
 *
 * Promise: the newest owner, once it has read, knows every message that anybody answered with 250.
 *
 * Wrong: CHECK_WRITE_ACK  looks at the epoch before the write instead of after it
 *        NO_REREAD        never looks
 *        READ_PUBLISH     the taker reads first and publishes afterwards
 */
#define NODES 3
#define EPOCHS 3
#define MESSAGES 2

byte published = 0;            /* the highest epoch on the spool */
byte written[EPOCHS + 1];      /* the log of each epoch: a set of messages */
byte known[EPOCHS + 1];        /* what the owner of each epoch has in memory */
bool loaded[EPOCHS + 1];       /* has it read all the logs? */
byte offered = 0;              /* messages that clients have sent so far */
byte acked = 0;                /* those that were answered with 250 */

inline check() {
  assert(published == 0 || !loaded[published] || (acked & ~known[published]) == 0)
}

proctype node() {
  byte mine = 0, log = 0, one = 0, seen = 0;
  do
  :: mine == 0 && published < EPOCHS ->
#ifndef READ_PUBLISH
     atomic {
       if
       :: published < EPOCHS -> published++; mine = published
       :: else
       fi
     };
#endif
     log = EPOCHS;
     do /* one log after the other, not all at once */
     :: log > 0 -> seen = seen | written[log]; log--
     :: log == 0 -> break
     od;
#ifdef READ_PUBLISH
     atomic {
       if
       :: published < EPOCHS -> published++; mine = published
       :: else
       fi
     };
#endif
     atomic {
       if
       :: mine > 0 -> known[mine] = seen; loaded[mine] = true; check()
       :: else
       fi;
       seen = 0
     }

  :: atomic { mine > 0 && offered < MESSAGES -> one = 1 << offered; offered++ };
#if defined(CHECK_WRITE_ACK)
     if
     :: published != mine -> goto superseded
     :: published == mine
     fi;
     d_step { written[mine] = written[mine] | one; known[mine] = known[mine] | one };
#elif defined(NO_REREAD)
     d_step { written[mine] = written[mine] | one; known[mine] = known[mine] | one };
#else
     d_step { written[mine] = written[mine] | one; known[mine] = known[mine] | one };
     if
     :: published != mine -> goto superseded
     :: published == mine
     fi;
#endif
     atomic { acked = acked | one; one = 0; check() }

  :: mine > 0 -> /* a crash, or noticing at leisure that another owns */
superseded:
     atomic { mine = 0; one = 0 }

  :: mine == 0 && published == EPOCHS -> break
  od
}

init {
  atomic {
    byte i = 0;
    do
    :: i < NODES -> run node(); i++
    :: else -> break
    od
  }
}
